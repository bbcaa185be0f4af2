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

from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.quadratic import Quadratic, SecondOrder, quadratic_model, solution
from ld3_jax.learning.state import StepMetrics, Task, TrainState, batch_indices, unless_done, validation_loss
from ld3_jax.ranges import COUNT, settle


@jax.tree_util.register_static
@dataclass(frozen=True)
class LevenbergMarquardt(SecondOrder):
    """Steps delta that solve (A + mu diag A) delta = -g; mu grows until the loss falls, and falls after a success.

    A and g are those of `quadratic.quadratic_model`. A step needs the whole batch's Jacobian, so `GaussNewton`, with
    small batches, gets further on the same number of network calls.

    Attributes: those of `SecondOrder`, and
        tries: how often mu may grow within a step; if no mu lowers the loss, nothing moves.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 6
    batch_size: int = 50
    validate_every: int = 1
    tries: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, {"tries": COUNT})

    def calls(self, task: Task, params: Params) -> int:
        """Those of the quadratic model, and of one try."""
        return super().calls(task, params) + sum(one.solver.nfe for one in task.students())

    def init(self, task: Task, params: Params) -> Float[Array, ""]:
        """The damping mu."""
        return jnp.asarray(1e-2)

    def step(self, task: Task, state: TrainState) -> tuple[TrainState, StepMetrics]:
        """See `damped_step`."""
        return damped_step(task, state)


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
