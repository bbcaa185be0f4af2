"""A student: a model, a solver with few network calls, and the loss that its samples are judged by."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PyTree

from ld3_jax.batches import count_of, in_batches
from ld3_jax.denoisers import Model, as_pytree
from ld3_jax.learning.discretization import Discretization
from ld3_jax.losses import Loss, as_loss, each, l2
from ld3_jax.ranges import COUNT, call, entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, integrate
from ld3_jax.teacher import Pairs


class Student(NamedTuple):
    """What is run and how it is judged; see `make_student`. Its leaves are the weights."""

    model: Model
    schedule: NoiseSchedule
    solver: Solver
    loss: Loss | None
    decode: Callable[[PyTree], PyTree]

    @property
    def judged_by(self) -> Loss:
        """The loss, or the squared error if it has none."""
        return l2 if self.loss is None else self.loss


@entrance(schedule=instance(NoiseSchedule), solver=instance(Solver))
def make_student(
    model: Model,
    schedule: NoiseSchedule,
    solver: Solver,
    loss: Callable[[PyTree, PyTree], Array] | None = None,
    decode: Callable[[PyTree], PyTree] = lambda x: x,
) -> Student:
    """A `Student` from any callables; a callable that is not a pytree is assumed to hold no weights.

    Args:
        model: model(x, t, cond) -> noise prediction.
        schedule: its noise schedule.
        solver: the solver, with its number of network calls.
        loss: loss(samples, targets) -> (batch,) losses, at least 0: for a similarity s <= 1 use 1 - s. None: it is
            judged by `losses.l2` and learns with `losses.both`.
        decode: from a state at t_min to what the loss sees, for instance a latent's image.

    Raises:
        ValueError: if the solver has no number of network calls.
    """
    if solver.nfe is None:
        raise ValueError(f"a student's solver needs its number of network calls, nfe, got {solver!r}")
    own = None if loss is None else as_loss(loss)
    return Student(as_pytree(model), schedule, solver, own, as_pytree(decode))


def run(
    student: Student, discretization: Discretization, x_T: PyTree, cond: PyTree = None, *, remat: bool = False
) -> PyTree:
    """The student's samples, decoded.

    Args:
        student: the student.
        discretization: the times and coefficients to run it with.
        x_T: a batch of initial states, scaled by the prior.
        cond: their conditions.
        remat: see `solvers.solve`.
    """
    _, schedule, solver, _, decode = student
    x = integrate(student.model, schedule, solver, discretization.table(schedule, solver), x_T, cond=cond, remat=remat)
    return call(decode, "a decoder is called as decode(x)", x)


def sample_losses(
    student: Student, discretization: Discretization, pairs: Pairs, *, remat: bool = False
) -> Float[Array, "batch"]:
    """The loss of each sample of `run` against `pairs.x_0`, the teacher's decoded sample, times the pair's weight."""
    x_0 = run(student, discretization, pairs.x_T, pairs.cond, remat=remat)
    return weighted(each(student.judged_by, x_0, pairs.x_0), pairs)


@entrance(student=instance(Student), discretization=instance(Discretization), pairs=instance(Pairs), batch_size=COUNT)
def distances(
    student: Student, discretization: Discretization, pairs: Pairs, *, batch_size: int = 25
) -> Float[Array, "n"]:
    """`sample_losses` of any number of pairs, a batch at a time.

    Integrating and comparing are two programs, so that another loss does not compile the network again.

    Args:
        student: the student.
        discretization: the times and coefficients to run it with.
        pairs: n pairs.
        batch_size: the most samples to integrate at a time; the batches are made equal.

    Returns:
        (n,) losses.
    """
    count_of(pairs, "pairs")
    samples = run_in_batches(student, discretization, pairs.x_T, pairs.cond, batch_size=batch_size)
    return weighted(losses_in_batches(student.judged_by, samples, pairs.x_0, batch_size=batch_size), pairs)


def weighted(values: Float[Array, "n"], pairs: Pairs) -> Float[Array, "n"]:
    """Values of pairs, times the pairs' weights if they have any."""
    return values if pairs.weight is None else values * pairs.weight


def run_in_batches(
    student: Student, discretization: Discretization, x_T: PyTree, cond: PyTree = None, *, batch_size: int = 25
) -> PyTree:
    """`run` for any number of initial states, one batch at a time."""
    return _run_in_batches(student._replace(loss=None), discretization, (x_T, cond), batch_size)


@partial(jax.jit, static_argnums=3)
def _run_in_batches(
    student: Student, discretization: Discretization, inputs: tuple[PyTree, PyTree], batch_size: int
) -> PyTree:
    return in_batches(lambda batch: run(student, discretization, *batch), inputs, batch_size)


@partial(jax.jit, static_argnames="batch_size")
def losses_in_batches(loss: Loss, samples: PyTree, targets: PyTree, *, batch_size: int = 25) -> Float[Array, "n"]:
    """`loss(samples, targets)` for any number of samples, a batch at a time; `loss` is a pytree."""
    return in_batches(lambda batch: each(loss, *batch), (samples, targets), batch_size)
