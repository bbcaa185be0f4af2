"""Gradient descent through the whole solver, with the options of LD3: its soft surrogate and its patience.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ld3_jax.batches import in_batches, spread
from ld3_jax.learning import optimizers
from ld3_jax.learning.optimizers import Optimizer
from ld3_jax.learning.parametrisation import Mask, Params
from ld3_jax.learning.patience import Patience, lower_rates
from ld3_jax.learning.student import sample_losses
from ld3_jax.learning.task import (
    Learner,
    StepMetrics,
    Task,
    TrainState,
    finite_or_inf,
    keep_best,
    unless_done,
    validation_is_due,
    validation_loss,
)
from ld3_jax.ranges import COUNT_OR_ZERO, FLAG, POSITIVE, instance, settle
from ld3_jax.space import add
from ld3_jax.teacher import Pairs


@dataclass(frozen=True)
class SoftSurrogate:
    """Let the initial noise of each sample move in a small ball if that lowers the sample's loss.

    Attributes:
        gamma: the ball around the noise z has the radius gamma d / n^2, for d elements and n steps.
        rate: rate of the noise's gradient step, times n.
        move_validation: whether validation noise moves too, once a round (a pass over the training pairs).

    Raises:
        ValueError: if gamma or the rate is not positive.

    Reference: Tong et al., arXiv:2405.15506, section 4.
    """

    gamma: float = 1e-3
    rate: float = 12.0
    move_validation: bool = False

    def __post_init__(self) -> None:
        settle(self, {"gamma": POSITIVE, "rate": POSITIVE, "move_validation": FLAG})


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Learner):
    """Steps along the gradient by any Optax transformation.

    The defaults reach a low error on held-out noise quickly; they are not the paper's choices.

    Attributes: as in `Learner`, and
        optimizer: any Optax transformation of the numbers, which are a dict of groups; see `optimizers.by_group`. None:
            Adam at the rates of the parametrisation.
        frozen_steps: number of steps at the beginning in which the groups that are `late` (the shifts) do not move.
        patience: when to lower the rates and to stop early; None: never.
        surrogate: the soft surrogate; None: off.
        remat: recompute activations in the backward pass, so that memory does not grow with the network calls.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 60
    validate_every: int = 10
    optimizer: Optimizer | None = None
    frozen_steps: int = 0
    patience: Patience | None = None
    surrogate: SoftSurrogate | None = None
    remat: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = {"optimizer": Optimizer, "patience": Patience, "surrogate": SoftSurrogate}
        kinds = {name: instance(of).or_none() for name, of in parts.items()}
        settle(self, kinds | {"frozen_steps": COUNT_OR_ZERO, "remat": FLAG})

    def check(self, task: Task) -> None:
        if self.surrogate:
            task.student.schedule.space.require_vectors("the soft surrogate, which moves noise in a ball,")

    def init(self, task: Task, params: Params) -> "Memory":
        """The optimiser's state, the factors on the rates, and the noise if it moves."""
        moving = self.surrogate is not None
        return Memory(
            optimizer=_optimizer(self, task).init(params),
            factors={name: jnp.ones(()) for name in params},
            worse=jnp.zeros((), jnp.int32),
            floor_visits=jnp.zeros((), jnp.int32),
            noise=task.train.x_T if moving else (),
            valid_noise=task.valid.x_T if moving else (),
            noise_rate=jnp.asarray(self.surrogate.rate / task.student.solver.n_steps if self.surrogate else 0.0),
        )

    def move(self, task: Task, state: TrainState, batch: Int[Array, "batch"]) -> tuple[Params, "Memory", StepMetrics]:
        """One gradient step on a batch, and one step of the batch's noise.

        The loss is the mean of `sample_losses` from the noise x'_T. With the soft surrogate, each x'_T then takes a
        gradient step, is projected on its ball, and keeps the move if its own loss falls under the updated times.
        """
        memory = state.learner
        noise = memory.noise if self.surrogate else task.train.x_T
        pairs, noise = spread(jax.tree.map(lambda leaf: leaf[batch], (task.train, noise)))
        (loss, each), (grads, noise_grads) = _gradients(self, task, state.params, noise, pairs)
        params, optimizer, grads = self._stepped(task, state, grads)
        memory, moved = memory._replace(optimizer=optimizer), jnp.zeros(())
        if self.surrogate:
            gamma, rate = self.surrogate.gamma, memory.noise_rate
            noise, accepted = _move_noise(gamma, task, params, rate, pairs, noise, noise_grads, each)
            scattered = jax.tree.map(lambda all, some: all.at[batch].set(some), memory.noise, noise)
            memory, moved = memory._replace(noise=scattered), accepted.mean()
        return params, memory, StepMetrics(loss, optax.tree.norm(grads), moved)

    def _stepped(self, task: Task, state: TrainState, grads: Params) -> tuple[Params, optax.OptState, Params]:
        """The numbers after the optimiser's step, its state, and the gradients of the learned numbers."""
        learned = task.parametrisation.learned(grads)
        grads = _only(learned, grads)
        for name, group in task.groups().items():
            if self.frozen_steps and group.late:
                frozen = state.step < self.frozen_steps
                grads[name] = jax.tree.map(lambda grad, frozen=frozen: jnp.where(frozen, 0.0, grad), grads[name])
        updates, optimizer = _optimizer(self, task).update(grads, state.learner.optimizer, state.params)
        updates = _only(learned, updates)  # an optimizer may move numbers that have no gradient, by weight decay
        factors = state.learner.factors
        updates = {name: jax.tree.map(lambda u, f=factors[name]: u * f, updates[name]) for name in updates}
        return task.parametrisation.project(add(state.params, updates), task.student.schedule), optimizer, grads

    def calls(self, task: Task, params: Params) -> int:
        """A gradient costs three calls, or four with recomputation; moving noise needs one more."""
        each = (4 if self.remat else 3) + (self.surrogate is not None)
        return each * task.student.solver.calls

    def after_step(self, task: Task, state: TrainState, step: int) -> TrainState:
        """A validation if one is due, and a step of the validation noise at the end of a round."""
        if validation_is_due(task, step):
            state = judge(self, task, state, validation_loss(task, state.params, _validation_pairs(self, task, state)))
        return end_round(self, task, state) if self._moves_validation_noise(task, step) else state

    def calls_after_step(self, task: Task, params: Params, step: int) -> int:
        """The calls of a validation and, if validation noise moves, of its step and another validation."""
        moves = self._moves_validation_noise(task, step)
        return super().calls_after_step(task, params, step) + moves * (
            self.calls(task, params) + task.student.solver.calls
        )

    def _moves_validation_noise(self, task: Task, step: int) -> bool:
        """Whether validation noise moves after this step: only after the last one of a round."""
        per_round = len(jax.tree.leaves(task.train)[0]) // self.batch_size
        return self.surrogate is not None and self.surrogate.move_validation and step % per_round == 0


class Memory(NamedTuple):
    """What gradient descent remembers."""

    optimizer: optax.OptState
    factors: dict[str, Float[Array, ""]]  # on the rate of each group
    worse: Int[Array, ""]  # validations since the best
    floor_visits: Int[Array, ""]
    noise: PyTree  # moved initial states of the training pairs; () if they do not move
    valid_noise: PyTree
    noise_rate: Float[Array, ""]


@jax.jit
def judge(learner: GradientDescent, task: Task, state: TrainState, loss: Float[Array, ""]) -> TrainState:
    """Keep the numbers if they are the best so far; when patience runs out, return to the best and lower the rates."""
    worse = jnp.where(loss < state.best_loss, 0, state.learner.worse + 1)
    new = keep_best(state, loss)
    new = new._replace(learner=state.learner._replace(worse=worse))
    if learner.patience:
        new = lower_rates(new, learner.patience, task.groups(), learner.frozen_steps)
    return unless_done(state, new)


def end_round(learner: GradientDescent, task: Task, state: TrainState) -> TrainState:
    """After a pass over the training pairs, validation noise also takes a step, under the best numbers.

    Its rate halves when no sample moves. The best loss is measured again, from the moved noise.
    """
    moved = _move_validation_noise(learner, task, state)
    return _measured_anew(state, moved, validation_loss(task, state.best, _validation_pairs(learner, task, moved)))


def _only(learned: Mask, changes: Params) -> Params:
    return jax.tree.map(lambda on, change: jnp.where(on, change, 0.0), learned, changes)


def _optimizer(learner: GradientDescent, task: Task) -> Optimizer:
    if learner.optimizer is not None:
        return learner.optimizer
    rules = {name: optimizers.adam(group.rate, learner.steps) for name, group in task.groups().items()}
    return optimizers.by_group(rules)


def _validation_pairs(learner: GradientDescent, task: Task, state: TrainState) -> Pairs:
    """Validation noise is the noise that the teacher started from, unless it moves too."""
    moves = learner.surrogate is not None and learner.surrogate.move_validation
    return task.valid._replace(x_T=state.learner.valid_noise) if moves else task.valid


@jax.jit
def _measured_anew(state: TrainState, moved: TrainState, loss: Array) -> TrainState:
    return unless_done(state, moved._replace(best_loss=finite_or_inf(loss), valid_loss=loss))


@jax.jit
def _move_validation_noise(learner: GradientDescent, task: Task, state: TrainState) -> TrainState:
    memory, surrogate = state.learner, learner.surrogate
    assert surrogate is not None  # `after_step` has checked

    def move(batch: tuple[Pairs, PyTree]) -> tuple[PyTree, Array]:
        pairs, noise = batch
        (_, each), (_, grads) = _gradients(learner, task, state.best, noise, pairs)
        return _move_noise(surrogate.gamma, task, state.best, memory.noise_rate, pairs, noise, grads, each)

    noise, accepted = in_batches(move, (task.valid, memory.valid_noise), learner.batch_size)
    rate = jnp.where(accepted.any(), memory.noise_rate, memory.noise_rate / 2)
    memory = memory._replace(valid_noise=noise, noise_rate=rate, worse=jnp.zeros_like(memory.worse))
    return state._replace(params=state.best, learner=memory)


def _gradients(
    learner: GradientDescent, task: Task, params: Params, noise: PyTree, pairs: Pairs
) -> tuple[tuple[Array, Array], tuple[Params, PyTree]]:
    """Mean loss, each sample's loss, and the gradients of the mean with respect to the numbers and the noise."""

    def objective(params: Params, noise: PyTree) -> tuple[Array, Array]:
        moved = pairs._replace(x_T=noise)
        each = sample_losses(task.student, task.discretization(params), moved, remat=learner.remat)
        return each.mean(), each

    return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, noise)


def _move_noise(
    gamma: float, task: Task, params: Params, rate: Array, pairs: Pairs, noise: PyTree, grads: PyTree, each: Array
) -> tuple[PyTree, Array]:
    """The soft surrogate's step on initial noise, kept for samples whose loss falls; and for which it was kept.

    Radius and rate are in units of z = x_T / prior_scale, which is the noise that the paper moves.
    """
    student, scale = task.student, task.student.schedule.prior_scale
    elements = sum(leaf[0].size for leaf in jax.tree.leaves(noise))
    radius = gamma * elements / student.solver.n_steps**2 * scale

    def step(origin: PyTree, noise: PyTree, grad: PyTree) -> PyTree:
        offset = jax.tree.map(lambda origin, x, grad: x - rate * scale**2 * grad - origin, origin, noise, grad)
        return jax.tree.map(jnp.add, origin, optax.projections.projection_l2_ball(offset, radius))

    candidate = jax.vmap(step)(pairs.x_T, noise, grads)
    accepted = sample_losses(student, task.discretization(params), pairs._replace(x_T=candidate)) < each
    keep = jax.vmap(lambda accepted, new, old: jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old))
    return keep(accepted, candidate, noise), accepted
