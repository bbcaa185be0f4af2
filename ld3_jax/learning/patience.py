"""LD3's patience: return to the best numbers, at lower rates, when validations find nothing better.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ld3_jax.learning.parametrisation import Group
from ld3_jax.learning.task import TrainState
from ld3_jax.ranges import COUNT, SHARE, UP_TO_ONE, Kind, check, instance, settle

_NOT_LEARNED = Group(rate=0.0)
_PAIR = Kind("a tuple of a group and its floor", lambda pair: isinstance(pair, tuple) and len(pair) == 2)


@dataclass(frozen=True)
class Patience:
    """Return to the best numbers and lower the rates when validations find nothing better.

    Attributes:
        validations: how many in a row without a new best.
        decay: factor on the rates.
        floors: the lowest factor on a group's rate, as (group, factor), if it is not the parametrisation's own.
        visits: stop after this many returns with all rates at their floors.

    Raises:
        ValueError: if validations or visits is less than 1, decay is not in (0, 1] or a floor not in [0, 1].
    """

    validations: int = 5
    decay: float = 0.8
    floors: tuple[tuple[str, float], ...] = ()
    visits: int = 5

    def __post_init__(self) -> None:
        settle(self, {"validations": COUNT, "decay": UP_TO_ONE, "visits": COUNT, "floors": instance(tuple)})
        pairs = {f"floors[{i}]": pair for i, pair in enumerate(self.floors)}
        check(pairs, dict.fromkeys(pairs, _PAIR))
        floors = {f"the floor of {group}": factor for group, factor in self.floors}
        check(floors, dict.fromkeys(floors, SHARE))


def lower_rates(state: TrainState, patience: Patience, groups: Mapping[str, Group], frozen_steps: int) -> TrainState:
    """When patience runs out: back to the best, with lower rates; groups that are still frozen keep theirs."""
    memory, floors = state.learner, dict(patience.floors)
    out = memory.worse >= patience.validations
    factors, at_floor = {}, out
    for name, old in memory.factors.items():
        group = groups.get(name, _NOT_LEARNED)
        floor = floors.get(name, group.floor)
        lower = out & (state.step > frozen_steps) if group.late else out
        factors[name] = jnp.where(lower, jnp.maximum(old * patience.decay, floor), old)
        at_floor &= factors[name] <= floor
    memory = memory._replace(
        factors=factors, worse=jnp.where(out, 0, memory.worse), floor_visits=memory.floor_visits + at_floor
    )
    params = jax.tree.map(lambda best, now: jnp.where(out, best, now), state.best, state.params)
    return state._replace(params=params, learner=memory, done=memory.floor_visits >= patience.visits)
