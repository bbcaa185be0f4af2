"""Where to start: the grid that is best before learning is often not the best one after it, so starts race.

The better two of the standard grids, each with its best start, learn for a quarter of the steps. The worse one drops
out, judged on the pairs that come last in the first pass, so that as few of them as possible have been used to learn;
the winner keeps what it has learned by then. So a race costs a quarter of the steps.

Reference: Jamieson and Talwalkar, arXiv:1502.07943 (successive halving).
"""

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax.grids import GRIDS
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.student import distances
from ld3_jax.learning.task import Task, TrainState, order_of_round
from ld3_jax.ranges import entrance, instance

Advance = Callable[[str, TrainState, int], TrainState]  # (name, state, step) -> the state at that step


class Start(NamedTuple):
    """A possible start, and its mean loss on some training pairs."""

    name: str
    discretization: Discretization
    loss: float


class Heat(NamedTuple):
    """The mean losses of the starts that were in the race at a step, best first."""

    step: int
    losses: dict[str, float]


@entrance(task=instance(Task))
def rank(task: Task) -> list[Start]:
    """All starts of the parametrisation on all standard grids, best first; NaN comes last.

    They are judged on as many training pairs as a validation batch holds: the pairs that are used first.
    """
    student, size, ranked = task.student, task.learner.valid_batch, []
    first = order_of_round(task, jnp.zeros((), jnp.int32))[:size]
    some = jax.tree.map(lambda leaf: leaf[first], task.train)
    for grid in GRIDS:
        for name, discretization in task.parametrisation.starts(grid, student.schedule, student.solver).items():
            ranked.append(
                Start(name, discretization, float(distances(student, discretization, some, batch_size=size).mean()))
            )
    return sorted(ranked, key=lambda start: _last_if_nan(start.loss))


def entrants(ranked: list[Start]) -> dict[str, Discretization]:
    """The best start on each grid of the better half, in the order of the ranking.

    Grids with the same times count as one, such as uniform and logsnr if noise is geometric in t.
    """
    chosen: dict[str, Discretization] = {}
    for name, discretization, _ in ranked:
        t = np.asarray(discretization.t)
        if not any(np.allclose(t, other.t, rtol=1e-4, atol=1e-4 * t.max()) for other in chosen.values()):
            chosen[name] = discretization
    return dict(islice(chosen.items(), math.ceil(len(chosen) / 2)))


def race(task: Task, states: Mapping[str, TrainState], advance: Advance) -> tuple[str, TrainState, list[Heat]]:
    """Halve the number of starts that learn until one is left.

    Args:
        task: the learning task.
        states: the initial states by name; a single one needs no race.
        advance: advance(name, state, step) -> the state at that step. A FloatingPointError ends one start's race.

    Returns:
        The winner's name and state, and the heats.

    Raises:
        FloatingPointError: if no start has a finite loss.
    """
    heats, count = [], len(states)
    for left in range(math.ceil(math.log2(count)), 0, -1):
        step = max(1, task.learner.steps // 2 ** (left + 1))
        losses, failure = {}, None
        moved = {}
        for name, state in states.items():
            try:
                moved[name] = advance(name, state, step)
            except FloatingPointError as error:
                failure = error
                continue
            losses[name] = _loss_of_the_last(task, moved[name])
        if not losses:
            raise FloatingPointError(f"no start has a finite loss: {failure}") from failure
        ranked = sorted(losses, key=lambda name: _last_if_nan(losses[name]))
        heats.append(Heat(step, {name: losses[name] for name in ranked}))
        states = {name: moved[name] for name in ranked[: 2 ** (left - 1)]}
    ((name, state),) = list(states.items())[:1]
    return name, state, heats


def _loss_of_the_last(task: Task, state: TrainState) -> float:
    """The mean loss on the last two batches of the first round."""
    size, held_out = task.learner.valid_batch, task.learner.held_out
    if held_out:
        pairs, order = task.valid, np.arange(held_out)
    else:
        pairs, order = task.train, np.asarray(order_of_round(task, jnp.zeros((), jnp.int32)))
    judged = np.split(order[-2 * size :], 2) if len(order) >= 2 * size else [order]
    discretization = task.discretization(state.params)
    parts = [jax.tree.map(lambda leaf, part=part: leaf[part], pairs) for part in judged]
    return float(
        jnp.concatenate([distances(task.student, discretization, part, batch_size=size) for part in parts]).mean()
    )


def _last_if_nan(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
