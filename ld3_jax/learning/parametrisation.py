"""Parametrisations: how learned numbers stand for a discretisation. A new one is a frozen dataclass with these methods.

The numbers are a dict of named groups of arrays. Learners treat all groups alike but for one: a group `logits` is one
whose softmax counts, so that equal changes along its last axis have no effect.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ld3_jax.learning.discretization import Discretization
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

Params = dict[str, PyTree[Array]]
Mask = dict[str, PyTree[Bool[np.ndarray, "..."]]]  # which of the numbers


@runtime_checkable
class Parametrisation(Protocol):
    """Pure functions from numbers to times and coefficients; hashable, and registered as static (`register_static`)."""

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers that stand for `start`."""
        ...

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """What the numbers stand for, for a solver with its number of network calls."""
        ...

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """The nearest numbers that count; a learner applies it after each step."""
        ...

    def learned(self, params: Params) -> Mask:
        """Booleans shaped like the numbers (arrays or their shapes): which are learned and have an effect."""
        ...

    def solvers(self, solver: Solver) -> tuple[Solver, ...]:
        """The solver for each number of network calls that is learned together."""
        ...

    def rates(self, solver: Solver) -> dict[str, float]:
        """Learning rates for Adam, one for each group that is learned."""
        ...


@jax.jit
def discretize(
    parametrisation: Parametrisation, params: Params, schedule: NoiseSchedule, solver: Solver
) -> Discretization:
    """What the numbers stand for, as one program."""
    return parametrisation.discretization(params, schedule, solver)


class Directions(NamedTuple):
    """The directions that a Jacobian is taken along, and what it is along all numbers: (its q columns) @ back."""

    along: Float[np.ndarray, "q p"]
    back: Float[np.ndarray, "q p"]


def directions(parametrisation: Parametrisation, params: Params) -> Directions:
    """Every number that is learned and has an effect, in the order of `ravel_pytree`.

    The column of a row's last logit is minus the sum of the row's others, so it costs nothing.
    """
    learned = parametrisation.learned(params)
    logits = {name: jax.tree.map(partial(_full, name == "logits"), group) for name, group in learned.items()}
    kept, is_logit = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (learned, logits))
    last = np.zeros_like(kept)
    if kept[is_logit].any():
        ends = np.zeros(params["logits"].shape, bool)
        ends[..., -1] = True
        last[is_logit] = ends.ravel()
    axes = np.eye(len(kept), dtype=np.float32)[kept & ~last]
    back = axes.copy()
    if last.any():
        rows = axes[:, is_logit].reshape(len(axes), -1, params["logits"].shape[-1])
        back[:, last] = -rows.sum(-1)
    return Directions(axes, back)


def known_groups(given: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Refuse names of groups that a parametrisation does not have."""
    if not set(given) <= set(groups):
        raise ValueError(f"frozen groups must be some of {list(groups)}, got {list(given)}")


def all_of(params: Params, frozen: tuple[str, ...]) -> Mask:
    """Booleans like the numbers: all but the frozen groups."""
    return {name: jax.tree.map(partial(_full, name not in frozen), group) for name, group in params.items()}


def _full(on: bool, leaf: Any) -> np.ndarray:
    return np.full(leaf.shape, on)
