"""A parametrisation for each part of a state: its own times, and whatever else another parametrisation learns."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.gaps import Gaps
from ld3_jax.learning.parametrisation import Group, Mask, Parametrisation, Params
from ld3_jax.ranges import instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

_GAPS = Gaps()


@jax.tree_util.register_static
@dataclass(frozen=True)
class ByPart:
    """The numbers of another parametrisation, once for each part of the noise schedule.

    Its arrays have a leading axis of parts.

    Attributes:
        each: the parametrisation of each part: `Gaps`, or `WithCoefficients` for times and coefficients.
    """

    each: Parametrisation = _GAPS

    def __post_init__(self) -> None:
        settle(self, {"each": instance(Parametrisation)})

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        parts = enumerate(schedule.parts)
        return _joined([self.each.init(start.of_part(i), part, solver) for i, part in parts])

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """The starts of each part together, by the names that all parts have."""
        each = [self.each.starts(grid, part, solver) for part in schedule.parts]
        return {name: _stacked([starts[name] for starts in each]) for name in each[0]}

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """Times (n + 1, parts), and coefficients with a last axis of parts."""
        parts = zip(_split(params), schedule.parts, strict=True)
        return _stacked([self.each.discretization(numbers, part, solver) for numbers, part in parts])

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        parts = zip(_split(params), schedule.parts, strict=True)
        return _joined([self.each.project(numbers, part) for numbers, part in parts])

    def learned(self, params: Params) -> Mask:
        of_one = self.each.learned(_split(params)[0])
        return jax.tree.map(lambda on, leaf: np.broadcast_to(on, leaf.shape), of_one, params)

    def groups(self, solver: Solver) -> dict[str, Group]:
        return self.each.groups(solver)


def _joined(each: list[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _split(params: Params) -> list[Params]:
    """The numbers of each part."""
    parts = jax.tree.leaves(params)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(parts)]


def _stacked(each: list[Discretization]) -> Discretization:
    """The discretisations of the parts as one of the whole state."""
    if len(each) == 1:
        return each[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, -1), *each)
