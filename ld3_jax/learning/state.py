"""The state of learning, and what every learner does with it: draw a batch, validate, keep the best.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ld3_jax.batches import whole
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.parametrisation import Group, Parametrisation, Params, discretize
from ld3_jax.learning.student import Student, distances
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO
from ld3_jax.teacher import Pairs

# The numbers that every learner has.
RANGES = dict.fromkeys(("steps", "batch_size", "validate_every", "valid_batch"), COUNT) | {"held_out": COUNT_OR_ZERO}


class StepMetrics(NamedTuple):
    """Scalars of one step."""

    loss: Float[Array, ""]  # of the batch, before the step
    grad_norm: Float[Array, ""]
    moved: Float[Array, ""]  # share of the batch whose noise moved


@runtime_checkable
class Learner(Protocol):
    """How the numbers move; hashable, and registered as static (`register_static`)."""

    steps: int
    batch_size: int
    validate_every: int
    valid_batch: int
    held_out: int

    def check(self, task: "Task") -> None:
        """Refuse a task that this learner cannot learn, with a ValueError."""
        ...

    def init(self, task: "Task", params: Params) -> Any:
        """The learner's part of the initial state."""
        ...

    def step(self, task: "Task", state: "TrainState") -> tuple["TrainState", StepMetrics]:
        """One step, jitted; the state as it is if learning is done."""
        ...

    def calls(self, task: "Task", params: Params) -> int:
        """Network calls that a step makes for each sample; a derivative along one direction counts as one."""
        ...

    def after_step(self, task: "Task", state: "TrainState", step: int) -> "TrainState":
        """What follows the step of that number: a validation where one is due."""
        ...


class Task(NamedTuple):
    """All that does not change while learning. The static parts are no leaves, so a task crosses jit as it is."""

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
        """What the numbers stand for."""
        return discretize(self.parametrisation, params, self.student.schedule, self.student.solver)


class TrainState(NamedTuple):
    """Everything that changes while learning."""

    step: Int[Array, ""]
    params: Params
    learner: PyTree  # what the learner remembers
    best: Params  # by validation
    best_loss: Float[Array, ""]
    start_loss: Float[Array, ""]  # validation loss of the start
    valid_loss: Float[Array, ""]  # of the latest validation
    done: Bool[Array, ""]


def init_state(task: Task, params: Params) -> TrainState:
    """The state before the first step, in which the start is the best so far."""
    loss = validation_loss(task, params, task.valid)
    if not isinstance(loss, jax.core.Tracer) and loss < 0:
        raise ValueError(f"a loss must be at least 0, as a distance is, got {loss}; of a likeness s <= 1 take 1 - s")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        learner=task.learner.init(task, params),
        best=params,
        best_loss=finite_or_inf(loss),
        start_loss=loss,
        valid_loss=loss,
        done=jnp.zeros((), bool),
    )


def batch_indices(task: Task, step: Array) -> Int[Array, "batch"]:
    """The next batch of this round's permutation; samples that do not fill a batch wait for another round."""
    count, size = len(jax.tree.leaves(task.train)[0]), task.learner.batch_size
    per_round = count // size
    return jax.lax.dynamic_slice(order_of_round(task, step // per_round), (step % per_round * size,), (size,))


def order_of_round(task: Task, number: Int[Array, ""]) -> Int[Array, "n"]:
    """The permutation of the training pairs in a round."""
    return jax.random.permutation(jax.random.fold_in(task.key, number), len(jax.tree.leaves(task.train)[0]))


def validation_is_due(task: Task, step: int) -> bool:
    """Whether a validation follows the step of that number."""
    return step % task.learner.validate_every == 0 or step == task.learner.steps


def validation_loss(task: Task, params: Params, pairs: Pairs) -> Float[Array, ""]:
    """The mean loss of any number of pairs."""
    return distances(task.student, task.discretization(params), pairs, batch_size=task.learner.valid_batch).mean()


def keep_best(state: TrainState, loss: Array) -> TrainState:
    """The state after a validation: its numbers are the best if their loss is below all earlier ones."""
    better = loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    return state._replace(valid_loss=loss, best=best, best_loss=jnp.where(better, loss, state.best_loss))


@jax.jit
def judge(state: TrainState, loss: Array) -> TrainState:
    """`keep_best`, unless learning is done."""
    return unless_done(state, keep_best(state, loss))


def unless_done(state: TrainState, new: TrainState) -> TrainState:
    """The new state, or where learning is done the old one."""
    return whole(jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, new))


def finite_or_inf(loss: Array) -> Array:
    """The loss, or infinity in place of NaN, which nothing would ever be better than."""
    return jnp.where(jnp.isfinite(loss), loss, jnp.inf)
