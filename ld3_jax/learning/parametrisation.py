"""Parametrisations: how learned numbers stand for a discretisation. A new one is a frozen dataclass with these methods.

The numbers are a dict of named groups of arrays. Learners know the groups by what `Parametrisation.groups` says about
them, and never by their names.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ld3_jax.learning.discretization import Discretization
from ld3_jax.ranges import NOT_NEGATIVE, SHARE, STATES, Kind, Range, check, shown
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

Params = dict[str, PyTree[Array]]
Mask = dict[str, PyTree[Bool[np.ndarray, "..."]]]  # which of the numbers


class Group(NamedTuple):
    """What learners need to know about a group of numbers.

    Attributes:
        rate: learning rate for Adam.
        largest: the most that one of its numbers may change in a second-order step; beyond it the quadratic model is
            poor.
        late: whether the group waits for the second phase of LD3 (`GradientDescent.frozen_steps`).
        floor: the lowest factor on its rate (`Patience`).
    """

    rate: float
    largest: float = math.inf
    late: bool = False
    floor: float = 0.01


@runtime_checkable
class Parametrisation(Protocol):
    """Pure functions from numbers to times and coefficients; hashable, and registered as static (`register_static`)."""

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers that stand for `start`; a ValueError if the solver or the start does not fit."""
        ...

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """What learning may start from on a standard grid, by name; the best one is used."""
        ...

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """What the numbers stand for."""
        ...

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """The nearest numbers within their bounds; a learner applies it after each step."""
        ...

    def learned(self, params: Params) -> Mask:
        """Booleans shaped like the numbers: which of them are learned and have an effect."""
        ...

    def groups(self, solver: Solver) -> dict[str, Group]:
        """The groups in which anything is learned; empty if nothing is."""
        ...


_OF_GROUP = {"rate": NOT_NEGATIVE, "largest": Range(0, above=True, below=False), "floor": SHARE}
_GROUPS = Kind("a dict of Group", lambda given: _is_dict(given) and all(isinstance(v, Group) for v in given.values()))
_NUMBERS = Kind("a dict of real floating-point arrays", lambda given: _is_dict(given) and not STATES.lacks(given))


def first_numbers(
    parametrisation: Parametrisation, start: Discretization, schedule: NoiseSchedule, solver: Solver
) -> Params:
    """`Parametrisation.init`; a ValueError unless numbers, masks and groups have the form that learners need."""
    params, groups = parametrisation.init(start, schedule, solver), parametrisation.groups(solver)
    check({"numbers": params, "groups": groups}, {"numbers": _NUMBERS, "groups": _GROUPS})
    for name, group in groups.items():
        values = {f"{what} of group {name!r}": getattr(group, what) for what in _OF_GROUP}
        check(values, dict(zip(values, _OF_GROUP.values(), strict=True)))
    learned = parametrisation.learned(params)
    if jax.tree.map(np.shape, learned) != jax.tree.map(np.shape, params):
        raise ValueError(f"learned must give booleans shaped like the numbers {shown(params)}, got {shown(learned)}")
    moving = [name for name, group in learned.items() if any(np.any(leaf) for leaf in jax.tree.leaves(group))]
    if {*groups} != {*moving}:
        raise ValueError(f"groups must be those in which anything is learned, {sorted(moving)}, got {sorted(groups)}")
    return params


def _is_dict(given: Any) -> bool:
    return isinstance(given, Mapping) and all(isinstance(name, str) for name in given)


def known_groups(given: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Refuse names of groups that a parametrisation does not have."""
    if not isinstance(given, tuple) or not all(one in groups for one in given):
        raise ValueError(f"frozen groups must be a tuple of some of {list(groups)}, got {given!r}")


def all_of(params: Params, frozen: tuple[str, ...]) -> Mask:
    """Booleans shaped like the numbers: true except in the frozen groups."""
    return {name: jax.tree.map(partial(_full, name not in frozen), group) for name, group in params.items()}


def _full(on: bool, leaf: Any) -> np.ndarray:
    return np.full(leaf.shape, on)
