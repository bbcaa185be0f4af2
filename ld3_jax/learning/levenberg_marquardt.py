"""Levenberg-Marquardt: second-order steps that never raise the loss of their batch.

Reference: Marquardt, SIAM J. Appl. Math. 11 (1963); Nocedal and Wright, Numerical Optimization, chapter 10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.second_order import Quadratic, SecondOrder, project, solution
from ld3_jax.learning.task import Task, TrainState, validation_loss
from ld3_jax.ranges import COUNT, settle
from ld3_jax.space import add
from ld3_jax.teacher import Pairs


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(SecondOrder):
    """Steps delta that solve (A + mu diag A) delta = -g; mu grows until the loss falls, and falls after a success.

    A and g are from `second_order.quadratic_model`. A step needs the whole batch's Jacobian, so `GaussNewton`, with
    small batches, gets further on the same number of network calls.

    Attributes: as in `SecondOrder`, and
        tries: how many times mu may grow within a step; if no mu lowers the loss, nothing moves.

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
        """The calls of the quadratic model and of one try."""
        return super().calls(task, params) + task.student.solver.calls

    def init(self, task: Task, params: Params) -> Float[Array, ""]:
        return jnp.asarray(1e-2)  # the damping mu

    def move_by(self, model: Quadratic, task: Task, state: TrainState, pairs: Pairs) -> tuple[Params, Float[Array, ""]]:
        def loss_at(params: Params) -> Array:
            return validation_loss(task, project(task, params), pairs)

        solve = partial(solution, model, params=state.params, task=task)
        update, damping = descend(self.tries, state.params, model.loss, loss_at, solve, state.learner)
        return project(task, add(state.params, update)), damping


def descend(
    tries: int,
    params: Params,
    loss: Float[Array, ""],
    loss_at: Callable[[Params], Array],
    solve: Callable[[Array], Params],
    damping: Float[Array, ""],
) -> tuple[Params, Float[Array, ""]]:
    """The update that lowers the loss (zero if none is found), and the damping for the next step.

    Args:
        tries: how many steps are tried.
        params: the numbers.
        loss: at these numbers.
        loss_at: the loss at other numbers.
        solve: solve(damping) -> the step.
        damping: mu at the beginning.
    """

    def again(carry: tuple[Array, Array, Array, Params]) -> Array:
        tried, lower, _, _ = carry
        return ~lower & (tried < tries)

    def attempt(carry: tuple[Array, Array, Array, Params]) -> tuple[Array, Array, Array, Params]:
        tried, _, damping, _ = carry
        damping = jnp.where(tried > 0, 5 * damping, damping)
        step = solve(damping)
        return tried + 1, loss_at(add(params, step)) < loss, damping, step

    none = jax.tree.map(jnp.zeros_like, params)
    start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), damping, none)
    _, lower, damping, last = jax.lax.while_loop(again, attempt, start)
    update = jax.tree.map(lambda leaf: jnp.where(lower, leaf, 0.0), last)
    return update, jnp.where(lower, jnp.maximum(damping / 5, 1e-6), damping)
