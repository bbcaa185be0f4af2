"""Where to start: the standard grids and the coefficients of other solvers on them, compared before learning.

Where two of them are close, a few steps from each say which one learns further.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ld3_jax.grids import GRIDS
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.student import distances
from ld3_jax.learning.task import (
    Taken,
    Task,
    TrainState,
    begin,
    finite_or_inf,
    order_of_round,
    take_step,
    validation_loss,
)
from ld3_jax.ranges import entrance, instance

Update = Callable[..., None]  # update(done, **figures), after each step
Watch = Callable[[str, int], AbstractContextManager[Update]]  # watch(label, number of steps), entered for the steps

_CLOSE = 1.25  # the second start is tried if its loss is at most this many times that of the first
_STEPS = 4  # of a trial
_CLEARLY = 0.85  # the second start is taken if its loss is then below this share of that of the first


class Start(NamedTuple):
    """A possible start, and its mean loss on some training pairs."""

    name: str
    discretization: Discretization
    loss: float


class Trial(NamedTuple):
    """A start, and what its first steps lead to.

    Attributes:
        name: of the start.
        first: the state before the first step.
        taken: the steps of the trial; empty if there was no other start to compare with.
        loss: the validation loss after them; infinity if it is not finite.
    """

    name: str
    first: TrainState
    taken: Taken = ()
    loss: float = math.inf


@entrance(task=instance(Task))
def rank(task: Task) -> list[Start]:
    """All starts of the parametrisation on all standard grids, best first; NaN comes last.

    They are judged on as many training pairs as a validation batch holds: the pairs that are used first.

    Raises:
        FloatingPointError: if no start has a finite loss.
    """
    student, size, ranked = task.student, task.learner.valid_batch, []
    first = order_of_round(task, jnp.zeros((), jnp.int32))[:size]
    some = jax.tree.map(lambda leaf: leaf[first], task.train)
    for grid in GRIDS:
        for name, discretization in task.parametrisation.starts(grid, student.schedule, student.solver).items():
            ranked.append(
                Start(name, discretization, float(distances(student, discretization, some, batch_size=size).mean()))
            )
    ranked.sort(key=lambda start: math.inf if math.isnan(start.loss) else start.loss)
    if not math.isfinite(ranked[0].loss):
        raise FloatingPointError(f"no start has a finite loss: {ranked[0].name} has {ranked[0].loss}")
    return ranked


def unwatched(label: str, total: int) -> AbstractContextManager[Update]:
    """A `Watch` that shows nothing."""
    return nullcontext(lambda done, **figures: None)


def trials(task: Task, ranked: Sequence[Start], watch: Watch = unwatched) -> list[Trial]:
    """The trials of the best start and, if it is close, of the second one. The one to learn from comes first.

    The loss before learning says little about the loss after it: of two starts with nearly the same loss, one may end
    with a third of the other's error. Where the errors at the end differ much, the losses differ after four steps.

    Args:
        task: the learning task.
        ranked: from `rank`, at least one.
        watch: shows progress.
    """
    close = [start for start in ranked[:2] if start.loss <= _CLOSE * ranked[0].loss]
    if len(close) == 1:
        return [Trial(ranked[0].name, begin(task, ranked[0].discretization))]
    count, tried = min(_STEPS, task.learner.steps), []
    with watch("two starts", len(close) * count) as update:
        for start in close:
            first = state = begin(task, start.discretization)
            taken = []
            for step in range(1, count + 1):
                state, figures = take_step(task, state, step)
                if taken:  # report the previous step while this one runs
                    update(len(tried) * count + step - 1, loss=float(taken[-1][1].loss))
                taken.append((state, figures))
            loss = float(finite_or_inf(validation_loss(task, state.params, task.valid)))
            tried.append(Trial(start.name, first, taken, loss))
            update(len(tried) * count, loss=loss)
    first, second = tried
    return [second, first] if second.loss < _CLEARLY * first.loss else [first, second]
