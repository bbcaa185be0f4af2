"""LD3 as a whole: start, step, and describe the learned schedule.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ld3_jax import losses
from ld3_jax.batches import check_finite, count_of, replicate
from ld3_jax.denoisers import prediction_of
from ld3_jax.learning.coefficients import WithCoefficients
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.gauss_newton import GaussNewton
from ld3_jax.learning.learned import Learned
from ld3_jax.learning.parametrisation import Parametrisation
from ld3_jax.learning.ranking import Start, Trial, Watch, rank, trials, unwatched
from ld3_jax.learning.student import Student
from ld3_jax.learning.task import START, Learner, StepMetrics, Taken, Task, TrainState, begin, take_step
from ld3_jax.ranges import FUNCTION, STATES, Kind, check, entrance, instance, static
from ld3_jax.teacher import Pairs

Advance = Callable[[TrainState, Taken], TrainState]  # from the first state to that after the last step

_EVERYTHING, _GAUSS_NEWTON = WithCoefficients(), GaussNewton()
_WEIGHTS = Kind("an array of positive numbers, one for each pair", lambda given: _positive(given))


def fit(
    student: Student,
    pairs: Pairs,
    key: PRNGKeyArray,
    *,
    parametrisation: Parametrisation = _EVERYTHING,
    learner: Learner = _GAUSS_NEWTON,
    start: str | Discretization = "best",
) -> Learned:
    """Learn a student's times and coefficients.

    Args:
        student: what to run, from `make_student`.
        pairs: the teacher's pairs; the loss compares with `x_0`, so it is decoded if the student decodes.
        key: fixes the order of the batches.
        parametrisation: the numbers to learn: `WithCoefficients`, `Gaps` or your own.
        learner: how it is learned.
        start: the times to start from: a standard grid's name, "best" for the best of them (`learning.rank`; where the
            second one is close, the better one after four steps), or an earlier result (`Learned.discretization`).

    Returns:
        The learned schedule: the best by the validation loss, or the start if no step is better.

    Raises:
        ValueError: if there are fewer pairs than a batch holds, or learner, parametrisation, loss and start do not fit
            together.
        FloatingPointError: if pairs or a loss are not finite (it names the step), or no validation loss is finite.

    For progress, checkpoints and resuming, call `learn` with your own `advance`, as this function does.
    """
    task = make_task(student, pairs, key, parametrisation, learner)
    ended = learn(task, start)
    return describe(task, ended.state)


@entrance(student=instance(Student), pairs=instance(Pairs), parametrisation=static(Parametrisation))
@entrance(key=Kind("a key of jax.random", lambda key: _is_key(key)), learner=static(Learner))
def make_task(
    student: Student, pairs: Pairs, key: PRNGKeyArray, parametrisation: Parametrisation, learner: Learner
) -> Task:
    """Everything that does not change while learning, checked, and on each device of the mesh in context.

    Args and Raises: see `fit`.
    """
    count = count_of(pairs, "pairs")
    check(pairs._asdict(), {"x_T": STATES, "x_0": STATES, "weight": _WEIGHTS.or_none()})
    check_finite((pairs.x_T, pairs.x_0), "the pairs to learn from")
    if learner.held_out >= count:
        raise ValueError(f"held_out must be less than the {count} pairs, got {learner.held_out}")
    known = count - learner.held_out
    if learner.batch_size > known:
        raise ValueError(f"batch_size must be at most the {known} training pairs, got {learner.batch_size}")
    train, valid = jax.tree.map(lambda leaf: leaf[:known], pairs), jax.tree.map(lambda leaf: leaf[known:], pairs)
    if not parametrisation.groups(student.solver):
        raise ValueError(
            "nothing is learned: every group of numbers is frozen, or a single step has no times between its ends: "
            f"{parametrisation}, {student.solver}"
        )
    if student.loss is None:
        student = student._replace(loss=losses.both(pairs.x_0))
    task = Task(student, train, valid if learner.held_out else train, key, parametrisation, learner)
    learner.check(task)
    losses.check_increasing(student.judged_by)
    jax.eval_shape(losses.each, student.loss, *(jax.tree.map(lambda leaf: leaf[:2], pairs.x_0),) * 2)
    return replicate(task)


class Ended(NamedTuple):
    """The end of learning, and what it started from."""

    state: TrainState
    start: str  # the name of the start
    ranked: list[Start]  # all possible starts before learning, best first; empty if one was given
    tried: dict[str, float]  # losses of two close starts after a few steps; empty if no two were close
    network_calls: int  # for one sample each; a derivative along one direction counts as one call


@entrance(task=instance(Task), start=START, advance=FUNCTION.or_none(), watch=FUNCTION)
def learn(
    task: Task, start: str | Discretization = "best", advance: Advance | None = None, watch: Watch = unwatched
) -> Ended:
    """Find the best start, if none is given, and learn to the last step.

    Args:
        task: the learning task.
        start: see `fit`.
        advance: advance(state, taken) -> the state after the last step, by `steps`; your own may also watch and save
            it.
        watch: watch(label, steps), a context manager for the steps by which two close starts are compared; what it
            yields is called after each step.

    Raises:
        FloatingPointError: if a loss is not finite (it names the step), or that of every start.
    """
    if isinstance(start, str) and start == "best":
        ranked = rank(task)
        tried = trials(task, ranked, watch)
    else:
        ranked = []
        tried = [Trial(start if isinstance(start, str) else "given", begin(task, start))]
    chosen, *others = tried
    last = (advance or partial(_last, task))(chosen.first, chosen.taken)
    losses = {trial.name: trial.loss for trial in tried if others}
    return Ended(last, chosen.name, ranked, losses, _network_calls(task, last, len(ranked), tried))


@entrance(task=instance(Task), state=instance(TrainState))
def steps(task: Task, state: TrainState, taken: Taken = ()) -> Iterator[tuple[TrainState, StepMetrics]]:
    """Learn, step by step. Only scalars leave the device, one step late, so that it never waits.

    Args:
        task: the learning task.
        state: the state to continue from, new or from an earlier run of the same task; the result is as if never
            interrupted.
        taken: the first steps of the task, if they are known; they are not taken again.

    Yields:
        Each step's state and figures (NumPy scalars), once the step's loss is known to be finite.

    Raises:
        FloatingPointError: if a loss is not finite; it names the step. All earlier steps have been yielded.
    """
    if state.done:
        return
    unchecked: tuple[TrainState, StepMetrics] | None = None
    for step in range(int(state.step) + 1, task.learner.steps + 1):
        state, figures = taken[step - 1] if step <= len(taken) else take_step(task, state, step)
        if unchecked:  # check the previous step while this one runs
            yield _checked(*unchecked)
            if unchecked[0].done:
                return
        unchecked = (state, figures)
    if unchecked:
        yield _checked(*unchecked)


@entrance(task=instance(Task), state=instance(TrainState))
def describe(task: Task, state: TrainState) -> Learned:
    """The discretisation of a state's best numbers.

    Raises:
        FloatingPointError: if no validation had a finite loss.
    """
    if not math.isfinite(state.best_loss):
        raise FloatingPointError("no validation had a finite loss, so that none of the learned times are the best")
    student, schedule = task.student, task.student.schedule
    discretization = task.discretization(state.best)
    figures = {"valid": {"start": float(state.start_loss), "learned": float(state.best_loss)}}
    model = {"predicts": prediction_of(student.model)}
    lam = np.asarray(discretization.lam(schedule))
    return Learned(student.solver, discretization, lam, model, figures, schedule.t_start)


def _positive(weights: Any) -> bool:
    return not STATES.lacks(weights) and np.ndim(weights) == 1 and bool(np.all(np.asarray(weights) > 0))


def _is_key(key: Any) -> bool:
    try:
        return jax.random.key_data(key).ndim == 1
    except TypeError:
        return False


def _last(task: Task, state: TrainState, taken: Taken) -> TrainState:
    last = state
    for last, _ in steps(task, state, taken):  # noqa: B007, only the last one is used
        pass
    return last


def _network_calls(task: Task, last: TrainState, ranked: int, tried: Sequence[Trial]) -> int:
    """The calls of the steps, of what follows them, and of the samples that were drawn for judging."""
    learner, n_train, n_valid = task.learner, *(len(jax.tree.leaves(pairs)[0]) for pairs in (task.train, task.valid))

    def of_steps(count: int) -> int:
        after = sum(learner.calls_after_step(task, last.params, step) for step in range(1, count + 1))
        return count * learner.batch_size * learner.calls(task, last.params) + n_valid * after

    judged = len(tried) + sum(bool(trial.taken) for trial in tried)  # before the first step, and after the trial's
    samples = ranked * min(learner.valid_batch, n_train) + n_valid * judged
    lost = sum(of_steps(len(trial.taken)) for trial in tried[1:])
    return of_steps(int(last.step)) + lost + samples * task.student.solver.calls


def _checked(state: TrainState, figures: StepMetrics) -> tuple[TrainState, StepMetrics]:
    figures = jax.device_get(figures)
    if not math.isfinite(figures.loss):
        raise FloatingPointError(f"the loss is {figures.loss} at step {int(state.step)}")
    return state, figures
