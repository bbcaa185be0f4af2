"""Gauss-Newton learning: steps of second order, from Jacobians taken in forward mode.

A schedule has few parameters and a sample many pixels, so the Jacobian of a sample is cheap to take column by column,
and nothing is kept for a backward pass: memory does not depend on the number of network calls. There is no learning
rate.

Reference: Nocedal and Wright, Numerical Optimization, chapter 10.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from ld3_jax import losses
from ld3_jax.coefficients import reached
from ld3_jax.learning import Learning, discretization
from ld3_jax.metrics import Student, in_batches, run
from ld3_jax.steps import StepMetrics, TrainState, batch_indices, unless_done, validation_loss, within_bounds
from ld3_jax.teacher import Pairs
from ld3_jax.timesteps import TimestepParams


class _Model(NamedTuple):
    """The quadratic model of each sample's loss around the parameters."""

    matrix: Float[Array, "n p p"]  # J^T w J
    gradient: Float[Array, "n p"]  # J^T w r
    loss: Float[Array, "n"]


@partial(jax.jit, static_argnames=("optimizer", "learning", "sharding"))
def gauss_newton_step(
    state: TrainState,
    student: Student,
    train: Pairs,
    key: PRNGKeyArray,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One step on a batch, with the matrix of normal equations for the optimizer; else as `steps.train_step`.

    The losses are phi(|r|^2), see `losses.least_squares`; around the parameters they are modelled by
    w |r + J delta|^2 with w = phi'(|r|^2), which is the least-squares problem of an iterated reweighting.

    Args:
        state: the state.
        student: the student; its loss must be one that `losses.least_squares` knows.
        train: all training pairs.
        key: fixes the order in which batches are drawn; the same at every step.
        optimizer: `optimizers.levenberg_marquardt()`.
        learning: static choices; `tangents` bounds the directions times samples that are integrated at a time.
        sharding: how a batch spreads over devices, along its first axis.

    Returns:
        The next state, unchanged if the state is done, and the step's figures.
    """
    indices = batch_indices(state.step, key, len(jax.tree.leaves(train)[0]), learning.batch_size)
    pairs = jax.tree.map(lambda leaf: leaf[indices], train)
    chunk = max(1, learning.tangents // len(_directions(state.params, learning).along))
    model = in_batches(partial(_quadratic_model, student, state.params, learning), pairs, chunk, sharding)

    def loss_at(params: TimestepParams) -> Array:
        return validation_loss(student, within_bounds(params, student, learning), pairs, learning, sharding)

    _, unravel = ravel_pytree(state.params)
    matrix, gradient = 2 * model.matrix.mean(0), unravel(2 * model.gradient.mean(0))
    updates, opt_state = optimizer.update(
        gradient, state.opt_state, state.params, matrix=matrix, value=model.loss.mean(), value_fn=loss_at
    )
    params = within_bounds(jax.tree.map(jnp.add, state.params, updates), student, learning)
    new = unless_done(state, state._replace(step=state.step + 1, params=params, opt_state=opt_state))
    return new, StepMetrics(model.loss.mean(), optax.tree.norm(gradient), jnp.zeros(()))


class _Directions(NamedTuple):
    """Along which parameters a sample's Jacobian is taken, and what it is along all of them."""

    along: Float[np.ndarray, "q p"]
    back: Float[np.ndarray, "q p"]  # the Jacobian is (its columns along the q directions) @ back


def _directions(params: TimestepParams, learning: Learning) -> _Directions:
    """Every parameter that is learned and has an effect.

    Equal changes of all logits have none, so the last logit's column is minus the sum of the others.
    """
    alive = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    if params.coefficients:
        alive = alive._replace(coefficients=reached(params.coefficients))
    groups = zip(("times", "shifts", "coefficients"), alive, strict=True)
    kept = [np.ravel(leaf) & (what in learning.what) for what, group in groups for leaf in jax.tree.leaves(group)]
    last = len(params.logits) - 1
    kept[0][last] = False
    axes = np.eye(sum(map(len, kept)), dtype=np.float32)[np.concatenate(kept)]
    back = axes.copy()
    back[:, last] = -axes[:, :last].sum(1)
    return _Directions(axes, back)


def _quadratic_model(student: Student, params: TimestepParams, learning: Learning, pairs: Pairs) -> _Model:
    flat, unravel = ravel_pytree(params)

    least_squares = losses.least_squares(student.loss)

    def residuals(flat: Array) -> list[Array]:
        t, t_c, change = discretization(unravel(flat), student, learning)
        return least_squares.residuals(run(student, t, t_c, pairs, change), pairs.x_0)

    def column(direction: Array) -> tuple[list[Array], list[Array]]:
        return jax.jvp(residuals, (flat,), (direction,))

    along, back = _directions(params, learning)
    # One integration carries all directions: what does not depend on them is computed once.
    r, columns = jax.vmap(column, out_axes=(None, 0))(jnp.asarray(along, flat.dtype))
    loss, weight = jax.vmap(jax.value_and_grad(least_squares.phi))(sum(jnp.sum(part**2, -1) for part in r))
    product = partial(jnp.einsum, precision="highest")
    matrix = sum(product("qnd,rnd->nqr", part, part) for part in columns)
    gradient = sum(product("qnd,nd->nq", part, of_r) for part, of_r in zip(columns, r, strict=True))
    return _Model(
        product("nqr,n,qa,rb->nab", matrix, weight, back, back), product("nq,n,qa->na", gradient, weight, back), loss
    )
