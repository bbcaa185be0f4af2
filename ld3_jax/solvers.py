"""Running a solver: one `lax.scan` over the rows of a table, differentiable from end to end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ld3_jax import denoisers, tables
from ld3_jax.coefficients import Coefficients, changed
from ld3_jax.denoisers import Model
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.tables import Table


@dataclass(frozen=True)
class Family:
    """What a solver family is and what it can do.

    Attributes:
        table: the family's coefficients, (schedule, t, t_c, *, order, variant, lower_order_final, nfe) -> Table.
        prediction: what its predictions are, "noise" or "data".
        orders: the orders that it has.
        variants: the variants that it has; none for most.
        calls_per_step: network calls for one step of the grid.
    """

    table: Callable[..., Table]
    prediction: str
    orders: tuple[int, ...]
    variants: tuple[str, ...] = ()
    calls_per_step: int = 1


SOLVERS = {
    "euler": Family(tables.euler, "noise", (1,)),
    "ddim": Family(tables.dpmpp, "data", (1,)),
    "heun": Family(tables.heun, "noise", (2,), calls_per_step=2),
    "dpm2": Family(tables.dpm2, "noise", (2,), calls_per_step=2),
    "dpmpp": Family(tables.dpmpp, "data", (1, 2, 3)),
    "unipc": Family(tables.unipc, "data", (1, 2, 3), variants=("bh1", "bh2")),
    "ipndm": Family(tables.ipndm, "noise", (1, 2, 3, 4)),
    "deis": Family(tables.deis, "noise", (1, 2, 3, 4)),
}

_AS_PREDICTION = {"noise": lambda model, schedule: model, "data": denoisers.to_data}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Method:
    """A solver with its static choices, checked when it is built. `dataclasses.asdict` makes it keywords of `sample`.

    Attributes:
        solver: a name in SOLVERS.
        nfe: network calls in all.
        order: an order that the family has; None becomes its highest.
        variant: for UniPC, "bh1" or "bh2"; other families have none and ignore it.
        lower_order_final: whether the order falls to 1 over the last steps (dpmpp, unipc).

    Raises:
        ValueError: if a name or order is not one that exists, or nfe is too small for the order.
    """

    solver: str
    nfe: int
    order: int | None = None
    variant: str = "bh1"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {sorted(SOLVERS)}, got {self.solver!r}")
        family = SOLVERS[self.solver]
        order = family.orders[-1] if self.order is None else self.order
        if order not in family.orders:
            raise ValueError(f"solver {self.solver!r} has the orders {list(family.orders)}, got {order}")
        if family.variants and self.variant not in family.variants:
            raise ValueError(f"solver {self.solver!r} has the variants {list(family.variants)}, got {self.variant!r}")
        if self.nfe < order:
            raise ValueError(f"solver {self.solver!r} of order {order} needs nfe of at least {order}, got {self.nfe}")
        object.__setattr__(self, "order", order)

    def __str__(self) -> str:
        return f"{self.solver} of order {self.order}, {self.nfe} calls"

    @property
    def n_steps(self) -> int:
        """Intervals of the grid: nfe, or (nfe + 1) // 2 with two calls a step, where the last of an odd nfe has one."""
        return -(-self.nfe // SOLVERS[self.solver].calls_per_step)


class _State(NamedTuple):
    x: PyTree
    base: PyTree
    history: PyTree


def make_table(
    schedule: NoiseSchedule,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"] | None = None,
    *,
    solver: str = "dpmpp",
    order: int | None = None,
    variant: str = "bh1",
    lower_order_final: bool = True,
    nfe: int | None = None,
) -> Table:
    """The coefficients of a solver on a grid.

    Args:
        schedule: the noise schedule.
        t: (n_steps + 1,) descending times from t_max to t_min.
        t_c: (n_steps + 1,) times given to the network in place of t; the last is not used. Default: t.
        solver: a name in SOLVERS.
        order: an order that the family has; default its highest.
        variant: for UniPC, "bh1" or "bh2"; other families have none and ignore it.
        lower_order_final: whether the order falls to 1 over the last steps (dpmpp, unipc).
        nfe: for families with two calls a step, 2 n_steps (default) or one less.

    Returns:
        A table of nfe rows, in the dtype of t.

    Raises:
        ValueError: if a name, order, shape or number of calls is not one that exists.
    """
    t_c = t if t_c is None else t_c
    if t.ndim != 1 or t.shape != t_c.shape:
        raise ValueError(f"t and t_c must be vectors of one length, got shapes {t.shape} and {t_c.shape}")
    if nfe is None:
        calls_per_step = SOLVERS[solver].calls_per_step if solver in SOLVERS else 1
        nfe = calls_per_step * (len(t) - 1)
    method = Method(solver, nfe, order, variant, lower_order_final)
    if method.n_steps != len(t) - 1:
        raise ValueError(f"{solver!r} with nfe {nfe} takes {method.n_steps + 1} times, but t has {len(t)} entries")
    return SOLVERS[solver].table(
        schedule, t, t_c, order=method.order, variant=variant, lower_order_final=lower_order_final, nfe=nfe
    )


def _add(base: PyTree, update: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, base, update)


def solve(
    model: Model,
    table: Table,
    x_T: PyTree[Float[Array, "..."]],
    *,
    cond: PyTree = None,
    remat: bool = True,
    retract: Callable[[PyTree, PyTree], PyTree] = _add,
    update_like: PyTree | None = None,
) -> PyTree[Float[Array, "..."]]:
    """Integrate with a given table.

    Args:
        model: model(x, t, cond) -> the prediction that the table is for (noise or data).
        table: coefficients, from `make_table` or of your own.
        x_T: state at t_max, scaled by the prior; an array or any pytree of arrays.
        cond: passed to the model.
        remat: recompute the network's activations in the backward pass, so that memory holds only the states.
        retract: how an update moves a base: retract(base, update) -> state. The default adds. On a manifold, base is a
            point, update a tangent vector, and the table's factors of the base must be 1, as in noise-predicting
            families on schedules with alpha = 1.
        update_like: arrays shaped like the model's prediction, where they are not shaped like x_T (tangent vectors).

    Returns:
        The state at t_min, shaped like x_T.
    """

    def step(state: _State, row: Table) -> tuple[_State, None]:
        history = jax.tree.map(_push, state.history, model(state.x, row.t, cond))
        base = jax.tree.map(lambda x, base: row.correct_x * x + row.correct_base * base, state.x, state.base)
        if row.correct_history.size:
            base = retract(base, _weighted(row.correct_history, history))
        x = retract(jax.tree.map(lambda base: row.predict_base * base, base), _weighted(row.predict_history, history))
        return _State(x, base, history), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)
    remembered = table.predict_history.shape[1]
    like = x_T if update_like is None else update_like
    history = jax.tree.map(lambda leaf: jnp.zeros((remembered, *leaf.shape), leaf.dtype), like)
    final, _ = jax.lax.scan(step, _State(x_T, x_T, history), table)
    return final.x


def sample(
    model: Model,
    schedule: NoiseSchedule,
    x_T: PyTree[Float[Array, "..."]],
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"] | None = None,
    *,
    solver: str = "dpmpp",
    order: int | None = None,
    variant: str = "bh1",
    lower_order_final: bool = True,
    nfe: int | None = None,
    coefficients: Coefficients | None = None,
    cond: PyTree = None,
    remat: bool = True,
) -> PyTree[Float[Array, "..."]]:
    """Integrate the diffusion ODE from x_T on the grid t. Pure: use it under jit, grad, vmap.

    Args:
        model: model(x, t, cond) -> noise prediction; see `ld3_jax.denoisers` for other kinds.
        schedule: its noise schedule.
        x_T: state at t_max, scaled by `schedule.prior_scale`; an array or a pytree of arrays.
        t: (n_steps + 1,) descending times from t_max to t_min.
        t_c: (n_steps + 1,) times given to the network; default t.
        solver, order, variant, lower_order_final, nfe: see `make_table`.
        coefficients: learned changes of the table; see `coefficients.changed`.
        cond: passed to the model.
        remat: see `solve`.

    Returns:
        x_0, shaped like x_T.

    Raises:
        ValueError: see `make_table`.

    Reference: Tong et al., arXiv:2405.15506, for the decoupled times t_c.
    """
    table = make_table(
        schedule, t, t_c, solver=solver, order=order, variant=variant, lower_order_final=lower_order_final, nfe=nfe
    )
    if coefficients is not None:
        table = changed(table, coefficients)
    predict = _AS_PREDICTION[SOLVERS[solver].prediction](model, schedule)
    return solve(predict, table, x_T, cond=cond, remat=remat)


def _push(history: Array, newest: Array) -> Array:
    return jnp.concatenate([newest[None], history[:-1]])


def _weighted(weights: Array, history: PyTree) -> PyTree:
    return jax.tree.map(lambda past: jnp.tensordot(weights, past, axes=1, precision=jax.lax.Precision.HIGHEST), history)
