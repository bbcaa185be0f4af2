"""A quadratic model of the loss around the numbers, from Jacobians of the samples: what steps of second order need.

There are few numbers to learn and a sample has many pixels, so a sample's Jacobian is cheap to take column by column,
and nothing is kept for a backward pass: memory does not depend on the number of network calls. A pose is fewer numbers
than are learned, so its Jacobian is taken row by row.

Reference: Nocedal and Wright, Numerical Optimization, chapter 10.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ld3_jax import denoisers, losses, ranges
from ld3_jax.batches import in_batches
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.jacobian import Directions, every_factor, passes, sample_and_jacobian, sample_and_jacobian_of_each
from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.state import RANGES, Task, TrainState, judge, together, validation_is_due, validation_loss
from ld3_jax.learning.student import Student
from ld3_jax.ranges import COUNT, POSITIVE
from ld3_jax.solvers import Expansion, Solver, expand, integrate
from ld3_jax.teacher import Pairs

_BOUND_ROUNDS = 3  # solutions in which more numbers may reach their bounds
_HELD = 64  # states held for each tangent that passes through the network at a time


@dataclass(frozen=True)
class SecondOrder:
    """What learners by steps of second order share.

    Attributes:
        steps: how many steps.
        batch_size: training pairs a step.
        validate_every: steps between validations.
        largest: the most that the logit of a gap may change in a step.
        tangents: directions times samples that pass through the network at a time: more on an accelerator. Memory holds
            64 states for each.
        held_out: how many of the pairs are for validation alone; 0: all are for both.
        valid_batch: validation samples to integrate at a time.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int
    batch_size: int
    validate_every: int
    largest: float = 1.0
    tangents: int = 40
    held_out: int = 0
    valid_batch: int = 25

    def __post_init__(self) -> None:
        ranges.settle(self, RANGES | {"tangents": COUNT, "largest": POSITIVE})

    def check(self, task: Task) -> None:
        """See `check`."""
        check(task.student.loss, task.parametrisation.solvers(task.student.solver))

    def calls(self, task: Task, params: Params) -> int:
        """See `network_calls`."""
        return network_calls(task, params)

    def after_step(self, task: Task, state: TrainState, step: int) -> TrainState:
        """A validation where one is due."""
        if not validation_is_due(task, step):
            return state
        return judge(state, validation_loss(task, state.params, task.valid))


class Quadratic(NamedTuple):
    """loss + gradient . step + step . matrix . step / 2, for steps of the p numbers as one vector."""

    loss: Float[Array, ""]
    gradient: Float[Array, "p"]
    matrix: Float[Array, "p p"]


def quadratic_model(task: Task, params: Params, pairs: Pairs, tangents: int) -> Quadratic:
    """The Gauss-Newton model of a batch's loss.

    A sample's loss is phi(|r|^2), see `losses.least_squares`. Around the numbers it is modelled by w |r + J step|^2,
    w = phi'(|r|^2), the least-squares problem of an iterated reweighting: gradient = 2 J^T w r, matrix = 2 J^T w J,
    averaged over the batch. Of several numbers of calls, the geometric mean is modelled.

    Args:
        task: what is learned.
        params: the numbers.
        pairs: the batch.
        tangents: directions times samples that pass through the network at a time.
    """
    models = [_of_student(task, student, params, pairs, tangents) for student in task.students()]
    loss, shares = jax.value_and_grad(together)([model.loss for model in models])
    parts = [
        jax.tree.map(lambda part, share=share: share * part, model) for model, share in zip(models, shares, strict=True)
    ]
    return jax.tree.map(lambda *part: sum(part), *parts)._replace(loss=loss)


def check(loss: Callable, solvers: Iterable[Solver]) -> None:
    """Refuse what steps of second order cannot learn.

    Raises:
        ValueError: if the loss is no function of squares, or a solver makes one step: XLA does not compile that.
    """
    losses.least_squares(loss)
    if one := [str(solver) for solver in solvers if solver.n_steps < 2]:
        raise ValueError(
            f"steps of second order need a solver of at least 2 steps, got {one[0]}; gradient descent does not"
        )


def network_calls(task: Task, params: Params) -> int:
    """Network calls of the model for each sample, where a derivative along one direction counts as one."""
    count = 0
    for student in task.students():
        found, nfe = jax.eval_shape(partial(task.discretization, student=student), params), student.solver.nfe
        if student.schedule.space.flat:
            derivatives = int(np.sum(nfe - _first_calls(student, found)))
        else:
            derivatives = nfe * passes(task.train.x_T, int(np.sum(_learned(task, params))))
        count += nfe + derivatives
    return count


def solution(
    model: Quadratic, damping: Float[Array, ""], params: Params, largest: float, project: Callable[[Params], Params]
) -> Params:
    """The step that solves (matrix + damping diag(matrix)) step = -gradient within the bounds of the numbers.

    A number that would leave its bounds is taken to its bound, and the others are solved for again. The step is
    shortened if the logit of a gap changes by too much.

    Args:
        model: the quadratic model, in the order of `ravel_pytree`.
        damping: relative to the diagonal.
        params: the numbers.
        largest: the most that the logit of a gap may change; beyond, the model means little.
        project: the nearest numbers within the bounds.

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
        within = ravel_pytree(project(unravel(flat + step)))[0] - flat
        at_bound |= jnp.abs(within - step) > 1e-6 * jnp.abs(step)
        step = within
    step = unravel(step)
    if "logits" not in step:
        return step
    most = jnp.abs(ravel_pytree(step["logits"])[0]).max()
    factor = jnp.minimum(1.0, largest / jnp.maximum(most, 1e-12))
    return jax.tree.map(lambda leaf: factor * leaf, step)


class Derivatives(NamedTuple):
    """How a student's samples are differentiated: along q directions, and what each of p numbers has of each."""

    sample: Callable[[Pairs], tuple[PyTree, PyTree]]  # a batch -> samples and their derivatives
    of_numbers: Float[Array, "q p"]
    batch: int  # samples at a time


def _of_student(task: Task, student: Student, params: Params, pairs: Pairs, tangents: int) -> Quadratic:
    least_squares = losses.least_squares(student.loss)
    along = _along_factors if student.schedule.space.flat else _along_numbers
    sample, of_numbers, batch = along(task, student, params, tangents)
    product = partial(jnp.einsum, precision="highest")

    def of_batch(pairs: Pairs) -> tuple[Array, Array, Array]:
        x, moved = sample(pairs)
        r, linear = jax.linearize(lambda x: least_squares.residuals(student.decode(x), pairs.x_0), x)
        columns = jax.lax.map(linear, moved)
        loss, weight = jax.vmap(jax.value_and_grad(least_squares.phi))(sum(jnp.sum(part**2, -1) for part in r))
        gradient = sum(product("qnd,nd,n->nq", part, of_r, weight) for part, of_r in zip(columns, r, strict=True))
        matrix = sum(product("qnd,rnd,n->nqr", part, part, weight) for part in columns)
        return loss, 2 * gradient, 2 * matrix

    loss, gradient, matrix = (part.mean(0) for part in in_batches(of_batch, pairs, batch))
    return Quadratic(
        loss, product("q,qa->a", gradient, of_numbers), product("qr,qa,rb->ab", matrix, of_numbers, of_numbers)
    )


def _along_factors(task: Task, student: Student, params: Params, tangents: int) -> Derivatives:
    """Along factors of the solver."""
    directions, of_numbers = _directions(task, student, params)
    expansion = _written_out(student, task.discretization(params, student))
    predict = denoisers.convert(student.model, student.schedule, student.solver.prediction)

    def sample(pairs: Pairs) -> tuple[PyTree, PyTree]:
        at_a_time = max(1, tangents // len(jax.tree.leaves(pairs)[0]))
        return sample_and_jacobian(predict, expansion, directions, pairs.x_T, pairs.cond, at_a_time=at_a_time)

    return Derivatives(sample, of_numbers, max(1, _HELD * tangents // (student.solver.nfe * len(of_numbers))))


def _along_numbers(task: Task, student: Student, params: Params, tangents: int) -> Derivatives:
    """Along the numbers themselves: on a manifold, where states are no sums."""
    flat, unravel = ravel_pytree(params)
    schedule, solver = student.schedule, student.solver
    learned = jnp.asarray(np.eye(len(flat))[_learned(task, params)], flat.dtype)

    def of_numbers(flat: Array, x_T: PyTree, cond: PyTree) -> PyTree:
        table = task.discretization(unravel(flat), student).table(schedule, solver)
        return integrate(student.model, schedule, solver, table, x_T, cond=cond)

    def sample(pairs: Pairs) -> tuple[PyTree, PyTree]:
        return sample_and_jacobian_of_each(of_numbers, flat, learned, pairs.x_T, pairs.cond)

    return Derivatives(sample, learned, max(1, tangents // passes(task.train.x_T, len(learned))))


def _directions(task: Task, student: Student, params: Params) -> tuple[Directions, Float[Array, "q p"]]:
    """Directions that all changes of the numbers are made of, and what each number has of each direction.

    Without coefficients these are the inner times and network times: the rows of a step depend on no later time. With
    them they are the factors themselves, which are fewer than times and coefficients together.
    """
    flat, unravel = ravel_pytree(params)
    learned = jnp.asarray(_learned(task, params), flat.dtype)

    def found(flat: Array) -> Discretization:
        return task.discretization(unravel(flat), student)

    def of_numbers(coordinates: Callable[[Discretization], Array]) -> Array:
        return jax.jacfwd(lambda flat: coordinates(found(flat)))(flat) * learned[None]

    here = found(flat)
    first = _first_calls(student, here)
    if here.coefficients is not None:
        directions = every_factor(student.solver.nfe)
        change = jnp.concatenate([part.reshape(len(part), -1) for part in directions.change], 1)
        return directions, of_numbers(
            lambda found: jnp.matmul(change, ravel_pytree(_written_out(student, found))[0], precision="highest")
        )

    def inner(found: Discretization) -> Array:
        return jnp.stack([found.t, found.t_c], 1)[1:-1].ravel()

    def with_inner(times: Array) -> Discretization:
        t, t_c = times.reshape(-1, 2).T
        return Discretization(here.t.at[1:-1].set(t), here.t_c.at[1:-1].set(t_c))

    change = jax.jacfwd(lambda times: _written_out(student, with_inner(times)))(inner(here))
    return Directions(first, jax.tree.map(lambda part: jnp.moveaxis(part, -1, 0), change)), of_numbers(inner)


def _learned(task: Task, params: Params) -> Bool[np.ndarray, "p"]:
    """Which of the numbers are learned, in the order of `ravel_pytree`."""
    return np.concatenate([np.ravel(on) for on in jax.tree.leaves(task.parametrisation.learned(params))])


def _first_calls(student: Student, found: Discretization) -> Int[np.ndarray, "q"]:
    """The call at which each direction begins."""
    if found.coefficients is not None:
        return every_factor(student.solver.nfe).first
    return 1 + student.solver.calls_per_step * np.repeat(np.arange(len(found.t) - 2), 2)


def _written_out(student: Student, found: Discretization) -> Expansion:
    return expand(found.table(student.schedule, student.solver))
