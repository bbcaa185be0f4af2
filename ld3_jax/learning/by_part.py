"""A parametrisation for each part of a state: its own times, and what else another parametrisation learns."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax.learning.curve import Curve
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.gaps import Gaps
from ld3_jax.learning.parametrisation import Mask, Parametrisation, Params
from ld3_jax.ranges import instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

_GAPS = Gaps()


@jax.tree_util.register_static
@dataclass(frozen=True)
class ByPart:
    """The numbers of another parametrisation, once for each part of the noise schedule.

    Its arrays are those of the parts, one after the other along the first axis. For a noise
    schedule of one part it is that parametrisation itself.

    Attributes:
        each: the parametrisation of each part: `Gaps`, or `WithCoefficients` for everything.

    Raises:
        ValueError: if it is a curve, which is read off for all parts alike.
    """

    each: Parametrisation = _GAPS

    def __post_init__(self) -> None:
        settle(self, {"each": instance(Parametrisation)})
        if isinstance(self.each, Curve | ByPart):
            raise ValueError(f"each part has gaps, or coefficients on top of them, got {self.each}")

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers of each part's times and coefficients, which may be the same for all."""
        parts = enumerate(schedule.parts)
        return _joined([self.each.init(start.of_part(i), part, solver) for i, part in parts])

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """The starts of each part together, by the names that all parts have."""
        each = [self.each.starts(grid, part, solver) for part in schedule.parts]
        return {name: _stacked([starts[name] for starts in each]) for name in each[0]}

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """Times (n + 1, parts), and coefficients with a last axis of parts."""
        parts = zip(_split(params, len(schedule.parts)), schedule.parts, strict=True)
        return _stacked([self.each.discretization(numbers, part, solver) for numbers, part in parts])

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """The projection of each part's numbers."""
        parts = zip(_split(params, len(schedule.parts)), schedule.parts, strict=True)
        return _joined([self.each.project(numbers, part) for numbers, part in parts])

    def learned(self, params: Params) -> Mask:
        """Those of each part."""
        parts = len(params["logits"]) - len(params["shifts"])  # a part has one logit more than it has shifts
        return _joined([self.each.learned(numbers) for numbers in _split(params, parts)])

    def solvers(self, solver: Solver) -> tuple[Solver, ...]:
        """The solver itself."""
        return self.each.solvers(solver)

    def rates(self, solver: Solver) -> dict[str, float]:
        """Those of each part."""
        return self.each.rates(solver)


def _joined(each: list[Any]) -> Any:
    """Numbers of each part, or booleans like them, one after the other."""
    return jax.tree.map(lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).concatenate(leaves), *each)


def _split(params: Params, parts: int) -> list[Params]:
    def piece(leaf: Any, i: int) -> Any:
        size = leaf.shape[0] // parts
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
        return leaf[i * size : (i + 1) * size]

    return [jax.tree.map(lambda leaf, i=i: piece(leaf, i), params) for i in range(parts)]


def _stacked(each: list[Discretization]) -> Discretization:
    """Discretisations of the parts as that of the whole."""
    if len(each) == 1:
        return each[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, -1), *each)
