"""Levenberg-Marquardt: steps of second order, from Jacobians taken in forward mode.

There are few numbers to learn and a sample has many pixels, so the Jacobian of a sample is cheap to take column by
column, and nothing is kept for a backward pass: memory does not depend on the number of network calls. There is no
learning rate.

Reference: Marquardt, SIAM J. Appl. Math. 11 (1963); Nocedal and Wright, Numerical Optimization, chapter 10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ld3_jax import losses
from ld3_jax.batches import in_batches
from ld3_jax.learning.parametrisation import Params, directions
from ld3_jax.learning.state import (
    StepMetrics,
    Task,
    TrainState,
    at_least_one,
    batch_indices,
    keep_best,
    unless_done,
    validation_is_due,
    validation_loss,
)
from ld3_jax.learning.student import run
from ld3_jax.teacher import Pairs


@jax.tree_util.register_static
@dataclass(frozen=True)
class LevenbergMarquardt:
    """Steps delta that solve (A + mu diag A) delta = -g; mu grows until the loss falls, and falls after a success.

    The losses are phi(|r|^2), see `losses.least_squares`. Around the numbers they are modelled by w |r + J delta|^2,
    w = phi'(|r|^2), the least-squares problem of an iterated reweighting. A = 2 J^T w J and g = 2 J^T w r, averaged
    over the batch.

    Attributes:
        steps: how many steps.
        batch_size: training pairs a step.
        validate_every: steps between validations.
        tangents: directions times samples that are integrated at a time.
        largest: the most that a logit may change in a step; beyond, the quadratic model means little.
        tries: how often mu may grow within a step; if no mu lowers the loss, nothing moves.
        held_out: of the pairs, so many are for validation alone; 0: all are for both.
        valid_batch: validation samples to integrate at a time.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 6
    batch_size: int = 50
    validate_every: int = 1
    tangents: int = 128
    largest: float = 1.0
    tries: int = 6
    held_out: int = 0
    valid_batch: int = 25

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "batch_size", "validate_every", "tangents", "tries", "valid_batch")

    def check(self, task: Task) -> None:
        """Losses of squares, of one number of network calls."""
        losses.least_squares(task.student.loss)
        if not task.is_of_one_number():
            raise ValueError("Levenberg-Marquardt learns for the student's own number of network calls, not several")

    def init(self, task: Task, params: Params) -> Float[Array, ""]:
        """The damping mu."""
        return jnp.asarray(1e-2)

    def step(self, task: Task, state: TrainState) -> tuple[TrainState, StepMetrics]:
        """See `damped_step`."""
        return damped_step(task, state)

    def after_step(self, task: Task, state: TrainState, step: int) -> TrainState:
        """A validation where one is due."""
        return (
            _judge(state, validation_loss(task, state.params, task.valid)) if validation_is_due(task, step) else state
        )


class Quadratic(NamedTuple):
    """A quadratic model of a loss around the numbers, these as one vector."""

    loss: Float[Array, "*n"]
    gradient: Float[Array, "*n p"]
    matrix: Float[Array, "*n p p"]


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
    chunk = max(1, task.learner.tangents // len(directions(task.parametrisation, state.params).along))
    each = in_batches(partial(_quadratic_model, task, state.params), pairs, chunk)
    model = Quadratic(each.loss.mean(), 2 * each.gradient.mean(0), 2 * each.matrix.mean(0))
    project = partial(task.parametrisation.project, schedule=task.student.schedule)

    def loss_at(params: Params) -> Array:
        return validation_loss(task, project(params), pairs)

    update, damping = descend(task.learner, state.params, model, loss_at, state.learner)
    params = project(optax.apply_updates(state.params, update))
    new = state._replace(step=state.step + 1, params=params, learner=damping)
    return unless_done(state, new), StepMetrics(model.loss, jnp.linalg.norm(model.gradient), jnp.zeros(()))


def descend(
    learner: LevenbergMarquardt,
    params: Params,
    model: Quadratic,
    loss_at: Callable[[Params], Array],
    damping: Float[Array, ""],
) -> tuple[Params, Float[Array, ""]]:
    """The update that lowers the loss, zero if none is found, and the damping to go on with.

    Args:
        learner: how far a step may go, and how many are tried.
        params: the numbers.
        model: the quadratic model around them, in the order of `ravel_pytree`.
        loss_at: the loss at other numbers.
        damping: mu, to begin with.
    """
    _, unravel = ravel_pytree(params)
    diagonal = jnp.maximum(jnp.diag(model.matrix), 1e-6 * jnp.diag(model.matrix).max() + 1e-12)

    def candidate(damping: Array) -> Params:
        step = unravel(-jnp.linalg.solve(model.matrix + jnp.diag(damping * diagonal), model.gradient))
        if "logits" not in step:
            return step
        factor = jnp.minimum(1.0, learner.largest / jnp.maximum(jnp.abs(step["logits"]).max(), 1e-12))
        return jax.tree.map(lambda leaf: factor * leaf, step)

    def again(carry: tuple[Array, Array, Array, Params]) -> Array:
        tried, lower, _, _ = carry
        return ~lower & (tried < learner.tries)

    def attempt(carry: tuple[Array, Array, Array, Params]) -> tuple[Array, Array, Array, Params]:
        tried, _, damping, _ = carry
        damping = jnp.where(tried > 0, 5 * damping, damping)
        step = candidate(damping)
        return tried + 1, loss_at(optax.apply_updates(params, step)) < model.loss, damping, step

    none = jax.tree.map(jnp.zeros_like, params)
    start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), damping, none)
    _, lower, damping, last = jax.lax.while_loop(again, attempt, start)
    update = jax.tree.map(lambda leaf: jnp.where(lower, leaf, 0.0), last)
    return update, jnp.where(lower, jnp.maximum(damping / 5, 1e-6), damping)


@jax.jit
def _judge(state: TrainState, loss: Array) -> TrainState:
    return unless_done(state, keep_best(state, loss))


def _quadratic_model(task: Task, params: Params, pairs: Pairs) -> Quadratic:
    """The model of each sample's loss."""
    student = task.student
    flat, unravel = ravel_pytree(params)
    least_squares = losses.least_squares(student.loss)

    def residuals(flat: Array) -> list[Array]:
        found = task.discretization(unravel(flat), student)
        return least_squares.residuals(run(student, found, pairs.x_T, pairs.cond), pairs.x_0)

    def column(direction: Array) -> tuple[list[Array], list[Array]]:
        return jax.jvp(residuals, (flat,), (direction,))

    along, back = directions(task.parametrisation, params)
    # One integration carries all directions: what does not depend on them is computed once.
    r, columns = jax.vmap(column, out_axes=(None, 0))(jnp.asarray(along, flat.dtype))
    loss, weight = jax.vmap(jax.value_and_grad(least_squares.phi))(sum(jnp.sum(part**2, -1) for part in r))
    product = partial(jnp.einsum, precision="highest")
    matrix = sum(product("qnd,rnd->nqr", part, part) for part in columns)
    gradient = sum(product("qnd,nd->nq", part, of_r) for part, of_r in zip(columns, r, strict=True))
    return Quadratic(
        loss, product("nq,n,qa->na", gradient, weight, back), product("nqr,n,qa,rb->nab", matrix, weight, back, back)
    )
