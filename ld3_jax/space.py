"""Where the states of a diffusion lie (vectors or a manifold), and so how noise or a step is added to a state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def add(base: PyTree[Array], update: PyTree[Array]) -> PyTree[Array]:
    """The sum of two pytrees, leaf by leaf: how an update moves a base in a vector space."""
    return jax.tree.map(jnp.add, base, update)


def _itself(x: PyTree[Array]) -> PyTree[Array]:
    return x


def _only(values: Sequence[Any]) -> Any:
    (value,) = values
    return value


@dataclass(frozen=True)
class Space:
    """The space of a noise schedule's states.

    Attributes:
        retract: retract(base, update) -> the state that an update moves a base to.
        tangent: tangent(state) -> arrays shaped like an update of it.
        join: a value for each part of the noise schedule -> a pytree that is a prefix of the states.
        flat: whether states are vectors. On a manifold noise and steps are updates, so the noise schedule must have
            alpha = 1, and solvers take noise predictions; solvers for data predictions are converted.

    Only solvers ask whether a space is flat. Everything else that needs vectors calls `require_vectors`.
    """

    retract: Callable[[PyTree, PyTree], PyTree] = add
    tangent: Callable[[PyTree], PyTree] = _itself
    join: Callable[[Sequence[Any]], Any] = _only
    flat: bool = True

    def require_vectors(self, what: str) -> None:
        """Raise a ValueError that names `what` if states lie on a manifold."""
        if not self.flat:
            raise ValueError(f"{what} is for states that are vectors, not for states on a manifold")


VECTORS = Space()
