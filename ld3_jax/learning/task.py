"""The learning task: a student, its pairs, how numbers stand for its times, and how they move.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ld3_jax.batches import replicate, whole
from ld3_jax.grids import check_times, known
from ld3_jax.learning.discretization import Discretization, on_grid
from ld3_jax.learning.parametrisation import Group, Parametrisation, Params, first_numbers
from ld3_jax.learning.student import Student, distances
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO, Kind, entrance, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

START = Kind(
    f"a Discretization, 'best' or a grid ({', '.join(known())})",
    lambda value: isinstance(value, Discretization) or (isinstance(value, str) and value in {"best", *known()}),
)


class StepMetrics(NamedTuple):
    """Scalars of one step."""

    loss: Float[Array, ""]  # of the batch, before the step
    grad_norm: Float[Array, ""]
    moved: Float[Array, ""]  # share of the batch whose noise moved


@dataclass(frozen=True, kw_only=True)
class Learner(abc.ABC):
    """How the numbers move. Your own learner is a frozen dataclass with `move`.

    Attributes:
        steps: how many steps.
        batch_size: training pairs in a step.
        validate_every: steps between validations.
        held_out: how many of the pairs are for validation only; 0: all are used for both.
        valid_batch: validation samples to integrate at a time.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 24
    batch_size: int = 10
    validate_every: int = 12
    held_out: int = 0
    valid_batch: int = 25

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_static(cls)

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("steps", "batch_size", "validate_every", "valid_batch"), COUNT)
        settle(self, counts | {"held_out": COUNT_OR_ZERO})

    def check(self, task: "Task") -> None:  # noqa: B027, most learners learn any task
        """Refuse a task that this learner cannot learn, with a ValueError."""

    def init(self, task: "Task", params: Params) -> Any:
        """What the learner remembers before the first step."""
        return ()

    @abc.abstractmethod
    def move(self, task: "Task", state: "TrainState", batch: Int[Array, "batch"]) -> tuple[Params, Any, StepMetrics]:
        """The numbers after a step, the learner's new memory, and the step's figures. Pure.

        Args:
            task: the learning task.
            state: the state before the step.
            batch: the indices of the step's training pairs.
        """

    @abc.abstractmethod
    def calls(self, task: "Task", params: Params) -> int:
        """Network calls of a step for each sample; a derivative along one direction counts as one."""

    def after_step(self, task: "Task", state: "TrainState", step: int) -> "TrainState":
        """What follows a step: a validation if one is due."""
        if not validation_is_due(task, step):
            return state
        return judge(state, validation_loss(task, state.params, task.valid))

    def calls_after_step(self, task: "Task", params: Params, step: int) -> int:
        """Network calls of `after_step` for each validation sample."""
        return task.student.solver.calls if validation_is_due(task, step) else 0


class Task(NamedTuple):
    """Everything that does not change while learning. Static parts are not leaves, so a task crosses jit as it is."""

    student: Student
    train: Pairs
    valid: Pairs
    key: PRNGKeyArray  # fixes the order of the batches
    parametrisation: Parametrisation
    learner: Learner

    def groups(self) -> dict[str, Group]:
        """The groups of numbers that are learned."""
        return self.parametrisation.groups(self.student.solver)

    def discretization(self, params: Params) -> Discretization:
        """The discretisation that the numbers stand for."""
        return _discretize(self.parametrisation, params, self.student.schedule, self.student.solver)


@jax.jit  # one program, if it is called outside any other
def _discretize(
    parametrisation: Parametrisation, params: Params, schedule: NoiseSchedule, solver: Solver
) -> Discretization:
    return parametrisation.discretization(params, schedule, solver)


class TrainState(NamedTuple):
    """Everything that changes while learning."""

    step: Int[Array, ""]
    params: Params
    learner: PyTree  # what the learner remembers
    best: Params  # by validation
    best_loss: Float[Array, ""]
    start_loss: Float[Array, ""]  # validation loss of the start
    valid_loss: Float[Array, ""]  # loss of the latest validation
    done: Bool[Array, ""]


Taken = Sequence[tuple[TrainState, StepMetrics]]  # the state and the figures of each of the first steps


@entrance(task=instance(Task), start=START)
def begin(task: Task, start: str | Discretization) -> TrainState:
    """The state before the first step, in which the start is the best so far.

    Args:
        task: the learning task.
        start: a standard grid's name, or the times to start from.
    """
    schedule, solver = task.student.schedule, task.student.solver
    times = on_grid(start, schedule, solver) if isinstance(start, str) else start
    check_times(times.t, times.t_c, schedule, whole=True)
    params = first_numbers(task.parametrisation, times, schedule, solver)
    loss = validation_loss(task, params, task.valid)
    first = task.discretization(params)
    check_times(first.t, first.t_c, schedule, whole=True)
    if not isinstance(loss, Tracer) and loss < 0:
        raise ValueError(f"a loss must be at least 0, as a distance is, got {loss}; for a similarity s <= 1 use 1 - s")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        learner=task.learner.init(task, params),
        best=params,
        best_loss=finite_or_inf(loss),
        start_loss=loss,
        valid_loss=loss,
        done=jnp.zeros((), bool),
    )
    # Without weak types, which a step would lose: `move` would be compiled twice.
    return replicate(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state))


@jax.jit
def move(task: Task, state: TrainState) -> tuple[TrainState, StepMetrics]:
    """One step of the learner: the next state, unchanged if learning is done, and the step's figures."""
    given = task.learner.move(task, state, batch_indices(task, state.step))
    needed = (state.params, state.learner, StepMetrics(*jnp.zeros(3)))
    shapes, allowed = (jax.tree.map(jnp.shape, tree) for tree in (given, needed))
    if jax.tree.structure(given) != jax.tree.structure(needed) or shapes != allowed:
        raise ValueError(f"move must give numbers, memory and figures of shapes {allowed}, got {shapes!s:.500}")
    params, memory, figures = given
    new = state._replace(step=state.step + 1, params=params, learner=memory)
    return unless_done(state, new), figures


def take_step(task: Task, state: TrainState, step: int) -> tuple[TrainState, StepMetrics]:
    """One step of the learner, and what follows it, such as a validation."""
    state, figures = move(task, state)
    return task.learner.after_step(task, state, step), figures


def batch_indices(task: Task, step: Array) -> Int[Array, "batch"]:
    """The next batch of this round's permutation; samples that do not fill a batch wait for the next round."""
    count, size = len(jax.tree.leaves(task.train)[0]), task.learner.batch_size
    per_round = count // size
    return jax.lax.dynamic_slice(order_of_round(task, step // per_round), (step % per_round * size,), (size,))


def order_of_round(task: Task, number: Int[Array, ""]) -> Int[Array, "n"]:
    """The permutation of the training pairs in a round.

    Pairs with weights are sorted by weight, which says how hard they are, and cut into as many parts as a batch has
    samples. A batch takes one from each part, so that batches differ little.
    """
    count, size = len(jax.tree.leaves(task.train)[0]), task.learner.batch_size
    key = jax.random.fold_in(task.key, number)
    order = jax.random.permutation(key, count)
    if task.train.weight is None:
        return order
    used, rest = jnp.split(order, [count // size * size])
    parts = used[jnp.argsort(task.train.weight[used])].reshape(size, -1)
    parts = jax.random.permutation(jax.random.fold_in(key, 0), parts, axis=1, independent=True)
    return jnp.concatenate([parts.T.ravel(), rest])


def validation_is_due(task: Task, step: int) -> bool:
    """Whether a validation follows this step."""
    return step % task.learner.validate_every == 0 or step == task.learner.steps


def validation_loss(task: Task, params: Params, pairs: Pairs) -> Float[Array, ""]:
    """The mean loss of any number of pairs."""
    return distances(task.student, task.discretization(params), pairs, batch_size=task.learner.valid_batch).mean()


def keep_best(state: TrainState, loss: Array) -> TrainState:
    """The state after a validation: its numbers are the best if their loss is lower than all earlier losses."""
    better = loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    return state._replace(valid_loss=loss, best=best, best_loss=jnp.where(better, loss, state.best_loss))


@jax.jit
def judge(state: TrainState, loss: Array) -> TrainState:
    """`keep_best`, unless learning is done."""
    return unless_done(state, keep_best(state, loss))


def unless_done(state: TrainState, new: TrainState) -> TrainState:
    """The new state, or the old one if learning is done."""
    return whole(jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, new))


def finite_or_inf(loss: Array) -> Array:
    """The loss, or infinity instead of NaN, because no loss compares as lower than NaN."""
    return jnp.where(jnp.isfinite(loss), loss, jnp.inf)
