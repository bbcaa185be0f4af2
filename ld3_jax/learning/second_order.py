"""Second-order steps: a quadratic model of the loss around the numbers, from Jacobians of the samples.

There are few numbers to learn and a sample has many pixels, so it is cheap to take a sample's Jacobian column by
column, and nothing is kept for a backward pass: memory does not depend on the number of network calls. A pose has fewer
numbers than are learned, so its Jacobian is taken row by row.

Reference: Nocedal and Wright, Numerical Optimization, chapter 10.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ld3_jax import denoisers
from ld3_jax.batches import in_batches
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.jacobian import Directions, every_factor, passes, sample_and_jacobian, sample_and_jacobian_of_each
from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.student import Student, weighted
from ld3_jax.learning.task import Learner, StepMetrics, Task, TrainState
from ld3_jax.losses import squares
from ld3_jax.ranges import COUNT, settle
from ld3_jax.solvers import Expansion, expand, integrate
from ld3_jax.teacher import Pairs

_BOUND_ROUNDS = 3  # rounds of solving, in each of which more numbers may reach their bounds
_ROUNDING = 1e-6  # relative; a larger difference from the nearest number within the bounds means that a bound is active
_HELD = 64  # states held in memory for each tangent that passes through the network at a time


class Quadratic(NamedTuple):
    """loss + gradient . step + step . matrix . step / 2, for steps of the p numbers as one vector."""

    loss: Float[Array, ""]
    gradient: Float[Array, "p"]
    matrix: Float[Array, "p p"]


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Learner):
    """A learner that makes second-order steps; a subclass says how a batch's model moves the numbers.

    Attributes: as in `Learner`, and
        tangents: directions times samples that pass through the network at a time; use more on an accelerator. Memory
            holds 64 states for each.
    """

    tangents: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, {"tangents": COUNT})

    def check(self, task: Task) -> None:
        """Refuse a loss that is not a function of squares, and a solver of one step, which XLA does not compile."""
        if task.student.judged_by.residuals is None:
            raise ValueError(
                "second-order steps (GaussNewton, LevenbergMarquardt) need a loss that has residuals, as "
                "losses.l2, rmse and both have; GradientDescent takes any loss"
            )
        if task.student.solver.n_steps < 2:
            raise ValueError(
                f"second-order steps need a solver of at least 2 steps, got {task.student.solver}; gradient descent "
                "does not"
            )

    def move(self, task: Task, state: TrainState, batch: Int[Array, "batch"]) -> tuple[Params, Any, StepMetrics]:
        pairs = jax.tree.map(lambda leaf: leaf[batch], task.train)
        model = quadratic_model(task, state.params, pairs, self.tangents)
        params, memory = self.move_by(model, task, state, pairs)
        return params, memory, StepMetrics(model.loss, jnp.linalg.norm(model.gradient), jnp.zeros(()))

    @abc.abstractmethod
    def move_by(self, model: Quadratic, task: Task, state: TrainState, pairs: Pairs) -> tuple[Params, Any]:
        """The numbers after a step on a batch with this model, and the learner's new memory."""

    def calls(self, task: Task, params: Params) -> int:
        """The network calls of the quadratic model."""
        nfe, schedule = task.student.solver.calls, task.student.schedule
        if task.student.solver.expands(schedule):
            first = _first_calls(task.student, jax.eval_shape(task.discretization, params))
            return nfe + int(np.sum(nfe - first))
        return nfe + nfe * passes(task.train.x_T, int(np.sum(_learned(task, params))))


def quadratic_model(task: Task, params: Params, pairs: Pairs, tangents: int) -> Quadratic:
    """The Gauss-Newton model of a batch's loss.

    A sample's loss is phi(|r|^2), see `losses.Loss`. Around the numbers it is modelled by w |r + J step|^2,
    w = phi'(|r|^2), the least-squares problem of an iterated reweighting: gradient = 2 J^T w r, matrix = 2 J^T w J,
    averaged over the batch. Loss and w are multiplied by the pair's weight.

    Args:
        task: the learning task.
        params: the numbers.
        pairs: the batch.
        tangents: directions times samples that pass through the network at a time.
    """
    student, loss = task.student, task.student.judged_by
    along = _along_factors if student.solver.expands(student.schedule) else _along_numbers
    sample, of_numbers, batch = along(task, params, tangents)
    product = partial(jnp.einsum, precision="highest")

    def of_batch(pairs: Pairs) -> tuple[Array, Array, Array]:
        x, moved = sample(pairs)
        r, linear = jax.linearize(lambda x: loss.parts(student.decode(x), pairs.x_0), x)
        columns = jax.lax.map(linear, moved)
        value, weight = (weighted(part, pairs) for part in jax.vmap(jax.value_and_grad(loss.phi))(squares(r)))
        gradient = sum(product("qnd,nd,n->nq", part, of_r, weight) for part, of_r in zip(columns, r, strict=True))
        matrix = sum(product("qnd,rnd,n->nqr", part, part, weight) for part in columns)
        return value, jnp.asarray(2 * gradient), jnp.asarray(2 * matrix)

    value, gradient, matrix = (part.mean(0) for part in in_batches(of_batch, pairs, batch))
    return Quadratic(
        value, product("q,qa->a", gradient, of_numbers), product("qr,qa,rb->ab", matrix, of_numbers, of_numbers)
    )


def solution(model: Quadratic, damping: Float[Array, ""], params: Params, task: Task) -> Params:
    """The step that solves (matrix + damping diag(matrix)) step = -gradient within the bounds of the numbers.

    A number that would leave its bounds is set to its bound, and the others are solved for again. The step is shortened
    if a number changes by more than its group allows (`Group.largest`).

    Args:
        model: the quadratic model, in the order of `ravel_pytree`.
        damping: relative to the diagonal.
        params: the numbers.
        task: the learning task, whose parametrisation states bounds and largest steps.

    Reference: Marquardt, SIAM J. Appl. Math. 11 (1963); Nocedal and Wright, Numerical Optimization, section 16.7.
    """
    flat, unravel = ravel_pytree(params)
    diagonal = jnp.diag(model.matrix)
    diagonal = jnp.maximum(diagonal, 1e-6 * diagonal.max() + 1e-12)
    damped = model.matrix + jnp.diag(damping * diagonal)
    at_bound, step = jnp.zeros(len(flat), bool), jnp.zeros_like(flat)
    for _ in range(_BOUND_ROUNDS):
        given = jnp.where(at_bound, step, 0.0)
        held = jnp.matmul(model.matrix, given, precision="highest")
        right = jnp.where(at_bound, given, -model.gradient - held)
        free = ~at_bound
        step = jnp.linalg.solve(jnp.where(free[:, None] & free[None], damped, jnp.eye(len(flat))), right)
        reached = ravel_pytree(project(task, unravel(flat + step)))[0]
        beyond = jnp.abs(reached - (flat + step)) > _ROUNDING * jnp.abs(reached)
        at_bound |= beyond
        step = jnp.where(beyond, reached - flat, step)
    return _shortened(unravel(step), task)


def _shortened(step: Params, task: Task) -> Params:
    factor = jnp.ones(())
    for name, group in task.groups().items():
        if math.isfinite(group.largest):
            most = jnp.abs(ravel_pytree(step[name])[0]).max()
            factor = jnp.minimum(factor, group.largest / jnp.maximum(most, 1e-12))
    return jax.tree.map(lambda leaf: factor * leaf, step)


def project(task: Task, params: Params) -> Params:
    """The nearest numbers within their bounds."""
    return task.parametrisation.project(params, task.student.schedule)


class Derivatives(NamedTuple):
    """How a student's samples are differentiated: along q directions, and how the p numbers depend on them."""

    sample: Callable[[Pairs], tuple[PyTree, PyTree]]  # a batch -> samples and their derivatives
    of_numbers: Float[Array, "q p"]
    batch: int  # samples at a time


def _along_factors(task: Task, params: Params, tangents: int) -> Derivatives:
    """Along factors of the solver."""
    student = task.student
    directions, of_numbers = _directions(task, params)
    expansion = _written_out(student, task.discretization(params))
    predict = denoisers.convert(student.model, student.schedule, student.solver.prediction)

    def sample(pairs: Pairs) -> tuple[PyTree, PyTree]:
        at_a_time = max(1, tangents // len(jax.tree.leaves(pairs)[0]))
        return sample_and_jacobian(predict, expansion, directions, pairs.x_T, pairs.cond, at_a_time=at_a_time)

    return Derivatives(sample, of_numbers, max(1, _HELD * tangents // (student.solver.calls * len(of_numbers))))


def _along_numbers(task: Task, params: Params, tangents: int) -> Derivatives:
    """Along the numbers themselves, where states are not sums."""
    flat, unravel = ravel_pytree(params)
    model, schedule, solver, *_ = task.student
    learned = jnp.asarray(np.eye(len(flat))[_learned(task, params)], flat.dtype)

    def of_numbers(flat: Array, x_T: PyTree, cond: PyTree) -> PyTree:
        table = task.discretization(unravel(flat)).table(schedule, solver)
        return integrate(model, schedule, solver, table, x_T, cond=cond)

    def sample(pairs: Pairs) -> tuple[PyTree, PyTree]:
        return sample_and_jacobian_of_each(of_numbers, flat, learned, pairs.x_T, pairs.cond)

    return Derivatives(sample, learned, max(1, tangents // passes(task.train.x_T, len(learned))))


def _directions(task: Task, params: Params) -> tuple[Directions, Float[Array, "q p"]]:
    """Directions that span all changes of the numbers, and the share of each direction in each number.

    Without coefficients, these are the inner times and network times: the rows of a step depend on no later time. With
    coefficients, they are the factors themselves, which are fewer than times and coefficients together.
    """
    student, (flat, unravel) = task.student, ravel_pytree(params)
    learned = jnp.asarray(_learned(task, params), flat.dtype)

    def at(flat: Array) -> Discretization:
        return task.discretization(unravel(flat))

    def of_numbers(coordinates: Callable[[Discretization], Array]) -> Array:
        return jax.jacfwd(lambda flat: coordinates(at(flat)))(flat) * learned[None]

    here = at(flat)
    first = _first_calls(student, here)
    if here.coefficients is not None:
        directions = every_factor(student.solver.calls)
        change = jnp.concatenate([part.reshape(len(part), -1) for part in directions.change], 1)
        return directions, of_numbers(
            lambda discretization: jnp.matmul(
                change, ravel_pytree(_written_out(student, discretization))[0], precision="highest"
            )
        )

    def inner(discretization: Discretization) -> Array:
        return jnp.stack([discretization.t, discretization.t_c], 1)[1:-1].ravel()

    def with_inner(times: Array) -> Discretization:
        t, t_c = times.reshape(-1, 2).T
        return Discretization(here.t.at[1:-1].set(t), here.t_c.at[1:-1].set(t_c))

    change = jax.jacfwd(lambda times: _written_out(student, with_inner(times)))(inner(here))
    return Directions(first, jax.tree.map(lambda part: jnp.moveaxis(part, -1, 0), change)), of_numbers(inner)


def _learned(task: Task, params: Params) -> Bool[np.ndarray, "p"]:
    """Which of the numbers are learned, in the order of `ravel_pytree`."""
    return np.concatenate([np.ravel(on) for on in jax.tree.leaves(task.parametrisation.learned(params))])


def _first_calls(student: Student, discretization: Discretization) -> Int[np.ndarray, "q"]:
    """The call at which each direction begins."""
    if discretization.coefficients is not None:
        return every_factor(student.solver.calls).first
    return 1 + student.solver.calls_per_step * np.repeat(np.arange(len(discretization.t) - 2), 2)


def _written_out(student: Student, discretization: Discretization) -> Expansion:
    return expand(discretization.table(student.schedule, student.solver))
