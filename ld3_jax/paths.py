"""Paths from noise to samples: a student's state at each of its times, and the teacher's at the same noise levels."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ld3_jax import denoisers, solvers
from ld3_jax.denoisers import Model
from ld3_jax.learning import Discretization, Student
from ld3_jax.ranges import ARRAYS, STATES, entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table

_ACCURATE = Solver("unipc", 60)


class Path(NamedTuple):
    """States on the way from the same initial states, at the points of a student's grid."""

    t: Float[Array, "n_points"]
    student: Float[Array, "n_points batch ..."]
    teacher: Float[Array, "n_points batch ..."]


@entrance(student=instance(Student), times=instance(Discretization), x_T=STATES, cond=ARRAYS, teacher=instance(Solver))
def follow(
    student: Student,
    times: Discretization,
    x_T: Float[Array, "batch ..."],
    cond: PyTree = None,
    *,
    teacher: Solver = _ACCURATE,
) -> Path:
    """Run a student and a teacher from the same initial states, and keep the states on the way.

    The teacher's grid is close to even in half-log-SNR and goes through the student's times.

    Args:
        student: what to run.
        times: its times and coefficients.
        x_T: a batch of initial states, scaled by the prior.
        cond: their conditions.
        teacher: an accurate solver; its number of network calls is met up to a step for each of the student's.

    Raises:
        ValueError: if the states are not vectors with one time for all.
    """
    model, schedule, solver = student.model, student.schedule, student.solver
    schedule.space.require_vectors("the path of the states")
    own = _on_grid(model, schedule, solver, times.table(schedule, solver), x_T, cond)
    t = jnp.maximum(times.t, schedule.t_min)  # a solver that ends without noise has 0 there
    fine, points = _refined(schedule, np.asarray(t), teacher.n_steps)
    accurate = replace(teacher, nfe=None, last_sigma=None).for_steps(len(fine) - 1)
    table = solvers.make_table(schedule, fine, solver=accurate)
    return Path(t, own, _on_grid(model, schedule, accurate, table, x_T, cond)[points])


def _refined(schedule: NoiseSchedule, t: np.ndarray, n: int) -> tuple[Array, np.ndarray]:
    """A grid of about n steps through all times of a coarse one, and where those are in it."""
    lam = np.asarray(schedule.lam(jnp.asarray(t)), np.float64)
    gaps = np.diff(lam)
    counts = np.maximum(1, np.round(n * gaps / gaps.sum())).astype(int)
    points = np.concatenate([[0], np.cumsum(counts)])
    fine = np.interp(np.arange(points[-1] + 1), points, lam)
    found = np.array(schedule.inverse_lam(jnp.asarray(fine, t.dtype)))
    found[points] = t
    return jnp.asarray(found), points


@partial(jax.jit, static_argnums=2)
def _on_grid(
    model: Model, schedule: NoiseSchedule, solver: Solver, table: Table, x_T: Array, cond: PyTree
) -> Float[Array, "n_points batch ..."]:
    """The states at the points of a solver's grid, of which the first is the initial one."""
    predict = denoisers.convert(model, schedule, solver.takes(schedule))
    states = solvers.states(predict, table, x_T, cond=cond)
    return states[np.minimum(np.arange(solver.n_steps + 1) * solver.calls_per_step, solver.calls)]
