"""The steps of LD3, jitted: a gradient step, a validation, the end of a round. Pure functions of the state.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ld3_jax import timesteps
from ld3_jax.learning import Learning, discretization, only_learned, students, together
from ld3_jax.metrics import Student, distances, in_batches, sample_losses, spread
from ld3_jax.teacher import Pairs
from ld3_jax.timesteps import TimestepParams


class TrainState(NamedTuple):
    """Everything that changes while learning."""

    step: Int[Array, ""]
    params: TimestepParams
    opt_state: optax.OptState
    factors: TimestepParams  # on the rates of each group
    best: TimestepParams  # by validation
    best_loss: Float[Array, ""]
    start_loss: Float[Array, ""]  # validation loss of the start
    valid_loss: Float[Array, ""]  # of the latest validation
    worse: Int[Array, ""]  # validations since the best
    floor_visits: Int[Array, ""]
    done: Bool[Array, ""]
    noise: PyTree  # training start states as moved; () when they do not move
    valid_noise: PyTree
    noise_rate: Float[Array, ""]


class StepMetrics(NamedTuple):
    """Scalars of one step."""

    loss: Float[Array, ""]  # of the batch, before the step
    grad_norm: Float[Array, ""]
    moved: Float[Array, ""]  # share of the batch whose noise moved


def init_state(
    student: Student,
    train: Pairs,
    valid: Pairs,
    start: TimestepParams,
    optimizer: optax.GradientTransformation,
    learning: Learning,
    *,
    sharding: jax.sharding.NamedSharding | None = None,
) -> TrainState:
    """The state before the first step, in which the start is the best so far."""
    loss = validation_loss(student, start, valid, learning, sharding)
    moving = learning.gamma > 0
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start,
        opt_state=optimizer.init(start),
        factors=TimestepParams(jnp.ones(()), jnp.ones(())),
        best=start,
        best_loss=_finite_or_inf(loss),
        start_loss=loss,
        valid_loss=loss,
        worse=jnp.zeros((), jnp.int32),
        floor_visits=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
        noise=train.x_T if moving else (),
        valid_noise=valid.x_T if moving else (),
        noise_rate=jnp.asarray(learning.noise_rate / student.method.n_steps),
    )


@partial(jax.jit, static_argnames=("optimizer", "learning", "sharding"))
def train_step(
    state: TrainState,
    student: Student,
    train: Pairs,
    key: PRNGKeyArray,
    *,
    optimizer: optax.GradientTransformation,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One gradient step on a batch, and one step of the batch's start noise.

    The loss is the mean of `sample_losses` from the noise x'_T. With the soft surrogate each x'_T then takes a gradient
    step, is projected on its ball, and keeps the move if its own loss falls under the updated steps.

    Args:
        state: the state.
        student: the student.
        train: all training pairs.
        key: fixes the order in which batches are drawn; the same at every step.
        optimizer: from `make_optimizer`, or any transformation of `TimestepParams`.
        learning: static choices.
        sharding: how a batch spreads over devices, along its first axis.

    Returns:
        The next state, unchanged if the state is done, and the step's figures.
    """
    indices = batch_indices(state.step, key, len(jax.tree.leaves(train)[0]), learning.batch_size)
    noise = state.noise if learning.gamma else train.x_T
    pairs, noise = spread(jax.tree.map(lambda leaf: leaf[indices], (train, noise)), sharding)
    (loss, each), (grads, noise_grads) = _gradients(student, state.params, noise, pairs, learning)
    grads = only_learned(grads, learning)
    grads = grads._replace(shifts=jnp.where(state.step < learning.frozen_steps, 0.0, grads.shifts))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = _scaled(updates, state.factors)
    params = within_bounds(jax.tree.map(jnp.add, state.params, updates), student, learning)
    new = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
    moved = jnp.zeros(())
    if learning.gamma:
        noise, accepted = _move_noise(student, params, noise, noise_grads, each, pairs, state.noise_rate, learning)
        new = new._replace(noise=jax.tree.map(lambda all, some: all.at[indices].set(some), state.noise, noise))
        moved = accepted.mean()
    return unless_done(state, new), StepMetrics(loss, optax.tree.norm(grads), moved)


def validate(
    state: TrainState,
    student: Student,
    valid: Pairs,
    *,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None = None,
) -> TrainState:
    """Keep the parameters if they are the best so far; out of patience, go back to the best and lower the rates.

    Validation noise is where the teacher started, unless `move_validation` lets it move.
    """
    loss = validation_loss(student, state.params, _where_moved(valid, state, learning), learning, sharding)
    return _judged(state, loss, learning)


@partial(jax.jit, static_argnames="learning")
def _judged(state: TrainState, loss: Array, learning: Learning) -> TrainState:
    better = loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    worse = jnp.where(better, 0, state.worse + 1)
    new = state._replace(valid_loss=loss, best=best, best_loss=jnp.where(better, loss, state.best_loss), worse=worse)
    if learning.patience:
        new = _lower_rates(new, learning)
    return unless_done(state, new)


def end_round(
    state: TrainState,
    student: Student,
    valid: Pairs,
    *,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None = None,
) -> TrainState:
    """After a pass over the training pairs: validation noise takes a step as well, under the best parameters.

    Its rate halves when no sample moves. The best loss is measured anew, from the noise as moved.
    """
    moved = _move_validation_noise(state, student, valid, learning=learning, sharding=sharding)
    loss = validation_loss(student, state.best, _where_moved(valid, moved, learning), learning, sharding)
    return _measured_anew(state, moved, loss)


@jax.jit
def _measured_anew(state: TrainState, moved: TrainState, loss: Array) -> TrainState:
    return unless_done(state, moved._replace(best_loss=_finite_or_inf(loss), valid_loss=loss))


@partial(jax.jit, static_argnames=("learning", "sharding"))
def _move_validation_noise(
    state: TrainState,
    student: Student,
    valid: Pairs,
    *,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None,
) -> TrainState:
    def move(batch: tuple[Pairs, PyTree]) -> tuple[PyTree, Array]:
        pairs, noise = batch
        (_, each), (_, grads) = _gradients(student, state.best, noise, pairs, learning)
        return _move_noise(student, state.best, noise, grads, each, pairs, state.noise_rate, learning)

    noise, accepted = in_batches(move, (valid, state.valid_noise), learning.batch_size, sharding)
    rate = jnp.where(accepted.any(), state.noise_rate, state.noise_rate / 2)
    return state._replace(params=state.best, valid_noise=noise, noise_rate=rate, worse=jnp.zeros_like(state.worse))


def unless_done(state: TrainState, new: TrainState) -> TrainState:
    """The new state, or where learning is done the old one."""
    return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, new)


def batch_indices(step: Array, key: PRNGKeyArray, count: int, batch_size: int) -> Array:
    """The next batch of this round's permutation; samples that do not fill a batch wait for another round."""
    per_round = count // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, step // per_round), count)
    return jax.lax.dynamic_slice(order, (step % per_round * batch_size,), (batch_size,))


def _gradients(
    student: Student, params: TimestepParams, noise: PyTree, pairs: Pairs, learning: Learning
) -> tuple[tuple[Array, Array], tuple[TimestepParams, PyTree]]:
    """Mean loss, each sample's loss, and the gradients of the mean with respect to the parameters and the noise."""

    def objective(params: TimestepParams, noise: PyTree) -> tuple[Array, Array]:
        moved = pairs._replace(x_T=noise)
        each = []
        for one in students(student, learning):
            t, t_c, change = discretization(params, one, learning)
            each.append(sample_losses(one, t, t_c, moved, change, remat=learning.remat))
        return together([losses.mean() for losses in each]), each[0]

    return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, noise)


def _move_noise(
    student: Student,
    params: TimestepParams,
    noise: PyTree,
    grads: PyTree,
    each: Array,
    pairs: Pairs,
    rate: Array,
    learning: Learning,
) -> tuple[PyTree, Array]:
    """The soft surrogate's step on start noise, kept where a sample's loss falls; and where it was kept.

    Radius and rate are those of z = x_T / prior_scale, which is the noise that the paper moves.
    """
    scale = student.schedule.prior_scale
    elements = sum(leaf[0].size for leaf in jax.tree.leaves(noise))
    radius = learning.gamma * elements / student.method.n_steps**2 * scale

    def step(origin: PyTree, noise: PyTree, grad: PyTree) -> PyTree:
        offset = jax.tree.map(lambda origin, x, grad: x - rate * scale**2 * grad - origin, origin, noise, grad)
        return jax.tree.map(jnp.add, origin, optax.projections.projection_l2_ball(offset, radius))

    candidate = jax.vmap(step)(pairs.x_T, noise, grads)
    t, t_c, change = discretization(params, student, learning)
    accepted = sample_losses(student, t, t_c, pairs._replace(x_T=candidate), change) < each
    keep = jax.vmap(lambda accepted, new, old: jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old))
    return keep(accepted, candidate, noise), accepted


def _scaled(updates: Any, factors: TimestepParams) -> TimestepParams:
    """Updates times the factors on the rates; the coefficients' is that of the logits."""
    coefficients = jax.tree.map(lambda update: update * factors.logits, updates.coefficients)
    return TimestepParams(updates.logits * factors.logits, updates.shifts * factors.shifts, coefficients)


def within_bounds(params: TimestepParams, student: Student, learning: Learning) -> TimestepParams:
    """Shifts clipped to where they count; beyond, their gradient is zero and they could not return."""
    if learning.nfes:
        bound = jnp.asarray(learning.max_shift)
    else:
        bound = timesteps.shift_bound(params, student.schedule, learning.space, learning.max_shift)
    return params._replace(shifts=jnp.clip(params.shifts, -bound, bound))


def _where_moved(valid: Pairs, state: TrainState, learning: Learning) -> Pairs:
    return valid._replace(x_T=state.valid_noise) if learning.move_validation and learning.gamma else valid


def validation_loss(
    student: Student,
    params: TimestepParams,
    valid: Pairs,
    learning: Learning,
    sharding: jax.sharding.NamedSharding | None,
) -> Float[Array, ""]:
    """The mean loss of the validation pairs; for a curve, of all its numbers of calls together."""
    means = []
    for one in students(student, learning):
        t, t_c, change = discretization(params, one, learning)
        each = distances(one, t, t_c, valid, change, batch_size=learning.valid_batch, sharding=sharding)
        means.append(each.mean())
    return together(means)


def _finite_or_inf(loss: Array) -> Array:
    """The loss, or infinity in place of NaN, which nothing would ever be better than."""
    return jnp.where(jnp.isfinite(loss), loss, jnp.inf)


def _lower_rates(state: TrainState, learning: Learning) -> TrainState:
    """Out of patience: back to the best with lower rates; shifts that still rest keep theirs."""
    out = state.worse >= learning.patience
    resting = state.step <= learning.frozen_steps
    (logits_floor, shifts_floor), old = learning.floors, state.factors
    logits = jnp.where(out, jnp.maximum(old.logits * learning.decay, logits_floor), old.logits)
    shifts = jnp.where(out & ~resting, jnp.maximum(old.shifts * learning.decay, shifts_floor), old.shifts)
    visits = state.floor_visits + (out & (logits <= logits_floor) & (shifts <= shifts_floor))
    return state._replace(
        params=jax.tree.map(lambda best, now: jnp.where(out, best, now), state.best, state.params),
        factors=TimestepParams(logits, shifts),
        worse=jnp.where(out, 0, state.worse),
        floor_visits=visits,
        done=visits >= learning.floor_visits,
    )
