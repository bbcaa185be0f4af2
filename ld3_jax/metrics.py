"""How far a student lands from its teacher."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax import losses, solvers
from ld3_jax.coefficients import Coefficients
from ld3_jax.denoisers import Model
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Method
from ld3_jax.teacher import Pairs, automatic, equal_batches


class Student(NamedTuple):
    """A model, the few-step solver to run it with, and how its samples are judged. The weights are its leaves."""

    model: Model
    schedule: NoiseSchedule
    method: Method
    loss: Callable[[PyTree, PyTree], Array]  # loss(samples, targets) -> one number a sample
    decode: Callable[[PyTree], PyTree]  # from a state at t_min to what the loss sees


def make_student(
    model: Model,
    schedule: NoiseSchedule,
    method: Method,
    loss: Callable[[PyTree, PyTree], Array] = losses.l2,
    decode: Callable[[PyTree], PyTree] = lambda x: x,
) -> Student:
    """A `Student` of any callables; those that are no pytrees of their own are taken to hold no weights.

    Args:
        model: model(x, t, cond) -> noise prediction.
        schedule: its noise schedule.
        method: the solver.
        loss: loss(samples, targets) -> (batch,) losses.
        decode: from a state at t_min to what the loss sees, for instance a latent's image.
    """
    return Student(_as_pytree(model), schedule, method, _as_pytree(loss), _as_pytree(decode))


@partial(jax.jit, static_argnames="remat")
def run(
    student: Student,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    pairs: Pairs,
    coefficients: Coefficients | None = None,
    *,
    remat: bool = False,
) -> PyTree:
    """The student's samples from `pairs.x_T`, decoded.

    Args:
        student: the student.
        t, t_c: (n_steps + 1,) the grid.
        pairs: a batch; `x_0` is not used.
        coefficients: learned changes of the solver's table, if any.
        remat: see `solvers.solve`.
    """
    method = dataclasses.asdict(student.method)
    x = solvers.sample(
        student.model,
        student.schedule,
        pairs.x_T,
        t,
        t_c,
        coefficients=coefficients,
        cond=pairs.cond,
        remat=remat,
        **method,
    )
    return student.decode(x)


def sample_losses(
    student: Student,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    pairs: Pairs,
    coefficients: Coefficients | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "batch"]:
    """The loss of each sample of `run` against `pairs.x_0`: what the teacher made, decoded."""
    return student.loss(run(student, t, t_c, pairs, coefficients, remat=remat), pairs.x_0)


def distances(
    student: Student,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    pairs: Pairs,
    coefficients: Coefficients | None = None,
    *,
    batch_size: int = 25,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Float[Array, "n"]:
    """`sample_losses` of any number of pairs, a batch at a time.

    Integrating and comparing are two programs, so that whatever else integrates compiles nothing.

    Args:
        student: the student.
        t, t_c: (n_steps + 1,) the grid.
        pairs: n pairs.
        coefficients: learned changes of the solver's table, if any.
        batch_size: the most samples to integrate at a time; the batches are made equal.
        sharding: how a batch spreads over devices, along its first axis.

    Returns:
        (n,) losses.
    """
    samples = run_in_batches(student, t, t_c, pairs, coefficients, batch_size=batch_size, sharding=sharding)
    return losses_in_batches(student.loss, samples, pairs.x_0, batch_size=batch_size, sharding=sharding)


@partial(jax.jit, static_argnames=("batch_size", "sharding"))
def run_in_batches(
    student: Student,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    pairs: Pairs,
    coefficients: Coefficients | None = None,
    *,
    batch_size: int = 25,
    sharding: jax.sharding.NamedSharding | None = None,
) -> PyTree:
    """`run` for any number of start states, a batch at a time; arguments as of `distances`."""
    return in_batches(lambda batch: run(student, t, t_c, batch, coefficients), pairs, batch_size, sharding)


@partial(jax.jit, static_argnames=("batch_size", "sharding"))
def losses_in_batches(
    loss: Callable[[PyTree, PyTree], Array],
    samples: PyTree,
    targets: PyTree,
    *,
    batch_size: int = 25,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Float[Array, "n"]:
    """`loss(samples, targets)` for any number of samples, a batch at a time; arguments as of `distances`."""
    return in_batches(lambda batch: loss(*batch), (samples, targets), batch_size, sharding)


def in_batches(
    function: Callable[[PyTree], PyTree],
    inputs: PyTree,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> PyTree:
    """Apply a function of batches to inputs with a longer leading axis, in equal batches of at most `batch_size`."""
    count = len(jax.tree.leaves(inputs)[0])
    n_batches, size = equal_batches(count, batch_size, 1 if sharding is None else sharding.num_devices)
    indices = jnp.arange(n_batches * size) % count
    batched = jax.tree.map(lambda leaf: leaf[indices].reshape(n_batches, size, *leaf.shape[1:]), inputs)
    outputs = jax.lax.map(lambda batch: function(spread(batch, sharding)), batched)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], outputs)


def spread(batch: PyTree, sharding: jax.sharding.NamedSharding | None) -> PyTree:
    """Ask the compiler to lay a batch over the devices, inside jit."""
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, automatic(sharding))


def _as_pytree(function: Callable) -> Callable:
    return Partial(function) if jax.tree_util.all_leaves([function]) else function
