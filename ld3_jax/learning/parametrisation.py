"""Parametrisations: how learned numbers stand for a discretisation. A new one is a frozen dataclass with these methods.

The numbers are a dict of named groups of arrays. Learners treat all groups alike but for one: steps of second order
bound the change of `logits`, the logits of gaps.
"""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree

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

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """What learning may start from on a hand-made grid, by name; the best of them counts."""
        ...

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """What the numbers stand for, for a solver with its number of network calls."""
        ...

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """The nearest numbers that are allowed; a learner applies it after each step."""
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


def known_groups(given: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Refuse names of groups that a parametrisation does not have."""
    if not isinstance(given, tuple) or not all(one in groups for one in given):
        raise ValueError(f"frozen groups must be a tuple of some of {list(groups)}, got {given!r}")


def all_of(params: Params, frozen: tuple[str, ...]) -> Mask:
    """Booleans like the numbers: all but the frozen groups."""
    return {name: jax.tree.map(partial(_full, name not in frozen), group) for name, group in params.items()}


def _full(on: bool, leaf: Any) -> np.ndarray:
    return np.full(leaf.shape, on)
