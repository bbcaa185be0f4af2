"""What a solver family states about itself: a row of `SOLVERS`."""

from collections.abc import Callable
from dataclasses import dataclass

from ld3_jax.solvers.table import Table


@dataclass(frozen=True)
class Family:
    """What a solver family is and what it can do.

    Attributes:
        table: the family's coefficients, (schedule, t, t_c, *, order, variant, lower_order_final, nfe) -> Table; it
            names the keywords that it uses and takes the others as `**_`.
        prediction: the prediction it takes, "noise" or "data".
        orders: its orders.
        variants: its variants; most families have none.
        calls_per_step: network calls for one step of the grid.
    """

    table: Callable[..., Table]
    prediction: str
    orders: tuple[int, ...]
    variants: tuple[str, ...] = ()
    calls_per_step: int = 1
