"""LD3 as a whole: rank the hand-made grids, start, step, and describe what was learned.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ld3_jax.batches import device_count, replicate
from ld3_jax.grids import GRIDS
from ld3_jax.learning.curve import Curve
from ld3_jax.learning.discretization import Discretization, on_grid
from ld3_jax.learning.gaps import Gaps
from ld3_jax.learning.gradient_descent import GradientDescent
from ld3_jax.learning.learned import Learned
from ld3_jax.learning.parametrisation import Parametrisation, Params
from ld3_jax.learning.state import Learner, StepMetrics, Task, TrainState, init_state, together
from ld3_jax.learning.student import Student, distances
from ld3_jax.teacher import Pairs

_GAPS, _GRADIENT_DESCENT = Gaps(), GradientDescent()


def fit(
    student: Student,
    pairs: Pairs,
    key: PRNGKeyArray,
    *,
    parametrisation: Parametrisation = _GAPS,
    learner: Learner = _GRADIENT_DESCENT,
    start: str | Discretization = "best",
) -> Learned:
    """Learn where a student's steps lie.

    Args:
        student: what to run, from `make_student`.
        pairs: the teacher's pairs; `x_0` is what the loss compares with, so decoded if the student decodes.
        key: fixes the order of the batches.
        parametrisation: what is learned.
        learner: how.
        start: the times to start from: a hand-made grid's name, "best" for the one with the least loss on the training
            pairs, or what was learned before (`Learned.found`).

    Returns:
        What was learned: the best by the validation loss, which is the start if nothing beats it.

    Raises:
        ValueError: if there are fewer pairs than a batch, a batch does not divide among the devices, or learner,
            parametrisation, loss and start do not fit together.
        FloatingPointError: if a loss is not finite; it names the step.

    For progress, checkpoints and resuming, drive `steps` yourself; this function is four lines around it.
    """
    task = make_task(student, pairs, key, parametrisation, learner)
    initial = begin(task, rank_grids(task)[0][0] if start == "best" else start)
    *_, (last, _) = itertools.chain([(initial, None)], steps(task, initial))
    return describe(task, last)


def make_task(
    student: Student, pairs: Pairs, key: PRNGKeyArray, parametrisation: Parametrisation, learner: Learner
) -> Task:
    """All that does not change while learning, checked; on each of the devices of the mesh in context.

    Args and raises as of `fit`.
    """
    count = len(jax.tree.leaves(pairs)[0])
    if not 0 <= learner.held_out < count:
        raise ValueError(f"held_out must be less than the {count} pairs and not negative, got {learner.held_out}")
    known = count - learner.held_out
    if learner.batch_size > known or learner.batch_size % device_count():
        raise ValueError(
            f"batch_size must be at most the {known} training pairs and divide by the {device_count()} devices, "
            f"got {learner.batch_size}"
        )
    train, valid = jax.tree.map(lambda leaf: leaf[:known], pairs), jax.tree.map(lambda leaf: leaf[known:], pairs)
    if not parametrisation.rates(student.solver):
        raise ValueError(f"every group of numbers is frozen, so that nothing is learned: {parametrisation}")
    task = Task(student, train, valid if learner.held_out else train, key, parametrisation, learner)
    learner.check(task)
    return replicate(task)


def rank_grids(task: Task) -> list[tuple[str, float]]:
    """Hand-made grids and their mean losses on the training pairs, best first; NaN comes last."""
    found = {}
    for name in GRIDS:
        means = []
        for student in task.students():
            grid = on_grid(name, student.schedule, student.solver)
            means.append(distances(student, grid, task.train, batch_size=task.learner.valid_batch).mean())
        found[name] = float(together(means))
    return sorted(found.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def begin(task: Task, start: str | Discretization) -> TrainState:
    """The state before the first step.

    Args:
        task: what is learned.
        start: a hand-made grid's name, or the times to start from.
    """
    return replicate(init_state(task, _numbers(task, start)))


def starts(
    task: Task, favourites: Sequence[str | Discretization], count: int, key: PRNGKeyArray, *, spread: float = 0.3
) -> list[TrainState]:
    """States to start from: the favourites in turn, then the first one again with noise on its logits.

    Args:
        task: what is learned.
        favourites: hand-made grids' names or times, the first one first.
        count: how many states.
        key: of the noise.
        spread: standard deviation of the noise.
    """
    numbers = [_numbers(task, start) for start in favourites[:count]]
    for noise_key in jax.random.split(key, max(count - len(numbers), 1))[: count - len(numbers)]:
        logits = numbers[0]["logits"]
        numbers.append({**numbers[0], "logits": logits + spread * jax.random.normal(noise_key, logits.shape)})
    return [replicate(init_state(task, params)) for params in numbers]


def steps(task: Task, state: TrainState) -> Iterator[tuple[TrainState, StepMetrics]]:
    """Learn, step by step. Only scalars leave the device, and those one step late, so that it never waits.

    Args:
        task: what is learned.
        state: the state to go on from, new or of an earlier run of the same task; it ends as if never interrupted.

    Yields:
        Each step's state and figures, these as NumPy scalars, once the step's loss is known to be finite.

    Raises:
        FloatingPointError: if a loss is not finite; it names the step. All earlier steps have been yielded.
    """
    if state.done:
        return
    unchecked: tuple[TrainState, StepMetrics] | None = None
    for step in range(int(state.step) + 1, task.learner.steps + 1):
        state, figures = task.learner.step(task, state)
        state = task.learner.after_step(task, state, step)
        if unchecked:  # look at the step before while this one runs
            yield _checked(*unchecked)
            if unchecked[0].done:
                return
        unchecked = (state, figures)
    if unchecked:
        yield _checked(*unchecked)


def describe(task: Task, state: TrainState) -> Learned:
    """What the best numbers of a state stand for."""
    student, schedule = task.student, task.student.schedule
    found = task.discretization(state.best, student)
    figures = {"valid": {"start": float(state.start_loss), "learned": float(state.best_loss)}}
    curve = (task.parametrisation, state.best) if isinstance(task.parametrisation, Curve) else None
    return Learned(student.solver, found, np.asarray(schedule.lam(found.t)), losses=figures, curve=curve)


def _numbers(task: Task, start: str | Discretization) -> Params:
    """The numbers that stand for a start."""
    schedule, solver = task.student.schedule, task.student.solver
    found = on_grid(start, schedule, solver) if isinstance(start, str) else start
    return task.parametrisation.init(found, schedule, solver)


def _checked(state: TrainState, figures: StepMetrics) -> tuple[TrainState, StepMetrics]:
    figures = jax.device_get(figures)
    if not math.isfinite(figures.loss):
        raise FloatingPointError(f"the loss is {figures.loss} at step {int(state.step)}")
    return state, figures
