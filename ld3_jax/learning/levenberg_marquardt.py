"""Levenberg-Marquardt: steps of second order that never raise the loss of their batch.

Reference: Marquardt, SIAM J. Appl. Math. 11 (1963); Nocedal and Wright, Numerical Optimization, chapter 10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ld3_jax.learning import quadratic
from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.quadratic import Quadratic, network_calls, quadratic_model, solution
from ld3_jax.learning.state import (
    RANGES,
    StepMetrics,
    Task,
    TrainState,
    batch_indices,
    judge,
    unless_done,
    validation_is_due,
    validation_loss,
)
from ld3_jax.ranges import COUNT, POSITIVE, check


@jax.tree_util.register_static
@dataclass(frozen=True)
class LevenbergMarquardt:
    """Steps delta that solve (A + mu diag A) delta = -g; mu grows until the loss falls, and falls after a success.

    A and g are those of `quadratic.quadratic_model`. A step needs the whole batch's Jacobian, so `GaussNewton`, with
    small batches, gets further on the same number of network calls.

    Attributes:
        steps: how many steps.
        batch_size: training pairs a step.
        validate_every: steps between validations.
        tangents: directions times samples that pass through the network at a time.
        largest: the most that the logit of a gap may change in a step.
        tries: how often mu may grow within a step; if no mu lowers the loss, nothing moves.
        held_out: of the pairs, so many are for validation alone; 0: all are for both.
        valid_batch: validation samples to integrate at a time.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 6
    batch_size: int = 50
    validate_every: int = 1
    tangents: int = 40
    largest: float = 1.0
    tries: int = 6
    held_out: int = 0
    valid_batch: int = 25

    def __post_init__(self) -> None:
        check(vars(self), RANGES | {"tangents": COUNT, "tries": COUNT, "largest": POSITIVE})

    def check(self, task: Task) -> None:
        """See `quadratic.check`."""
        quadratic.check(task.student.loss, task.parametrisation.solvers(task.student.solver))

    def init(self, task: Task, params: Params) -> Float[Array, ""]:
        """The damping mu."""
        return jnp.asarray(1e-2)

    def step(self, task: Task, state: TrainState) -> tuple[TrainState, StepMetrics]:
        """See `damped_step`."""
        return damped_step(task, state)

    def calls(self, task: Task, params: Params) -> int:
        """See `quadratic.network_calls`."""
        return network_calls(task, params)

    def after_step(self, task: Task, state: TrainState, step: int) -> TrainState:
        """A validation where one is due."""
        if not validation_is_due(task, step):
            return state
        return judge(state, validation_loss(task, state.params, task.valid))


@jax.jit
def damped_step(task: Task, state: TrainState) -> tuple[TrainState, StepMetrics]:
    """One step on a batch.

    Args:
        task: what is learned.
        state: the state.

    Returns:
        The next state, unchanged if the state is done, and the step's figures.
    """
    indices = batch_indices(task, state.step)
    pairs = jax.tree.map(lambda leaf: leaf[indices], task.train)
    model = quadratic_model(task, state.params, pairs, task.learner.tangents)
    project = partial(task.parametrisation.project, schedule=task.student.schedule)

    def loss_at(params: Params) -> Array:
        return validation_loss(task, project(params), pairs)

    update, damping = descend(task.learner, state.params, model, loss_at, project, state.learner)
    params = project(optax.apply_updates(state.params, update))
    new = state._replace(step=state.step + 1, params=params, learner=damping)
    return unless_done(state, new), StepMetrics(model.loss, jnp.linalg.norm(model.gradient), jnp.zeros(()))


def descend(
    learner: LevenbergMarquardt,
    params: Params,
    model: Quadratic,
    loss_at: Callable[[Params], Array],
    project: Callable[[Params], Params],
    damping: Float[Array, ""],
) -> tuple[Params, Float[Array, ""]]:
    """The update that lowers the loss, zero if none is found, and the damping to go on with.

    Args:
        learner: how far a step may go, and how many are tried.
        params: the numbers.
        model: the quadratic model around them, in the order of `ravel_pytree`.
        loss_at: the loss at other numbers.
        project: the nearest numbers within their bounds.
        damping: mu, to begin with.
    """

    def again(carry: tuple[Array, Array, Array, Params]) -> Array:
        tried, lower, _, _ = carry
        return ~lower & (tried < learner.tries)

    def attempt(carry: tuple[Array, Array, Array, Params]) -> tuple[Array, Array, Array, Params]:
        tried, _, damping, _ = carry
        damping = jnp.where(tried > 0, 5 * damping, damping)
        step = solution(model, damping, params, learner.largest, project)
        return tried + 1, loss_at(optax.apply_updates(params, step)) < model.loss, damping, step

    none = jax.tree.map(jnp.zeros_like, params)
    start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), damping, none)
    _, lower, damping, last = jax.lax.while_loop(again, attempt, start)
    update = jax.tree.map(lambda leaf: jnp.where(lower, leaf, 0.0), last)
    return update, jnp.where(lower, jnp.maximum(damping / 5, 1e-6), damping)
