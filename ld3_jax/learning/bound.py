"""How far the student's distribution is from the teacher's: the bound of LD3's theorem, and the divergence itself."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ld3_jax.batches import count_of, in_batches, to_host
from ld3_jax.denoisers import Model
from ld3_jax.learning.discretization import Discretization, on_grid
from ld3_jax.learning.student import Student
from ld3_jax.ranges import STATES, entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table, integrate
from ld3_jax.teacher import Teacher

Map = Callable[[Array], Array]

_STEPS, _HALVINGS = 30, 8
_CLOSE = 1e-3  # root mean square of Newton's last step, in units of the prior's standard deviation


class Bound(NamedTuple):
    """KL(teacher || student) in nats, bounded and estimated; see `kl_bound`.

    Attributes:
        value: the bound, r^2 / 2 + r sqrt(d) + log_det.
        radius: r, the largest |a' - a|.
        log_det: mean |C_student(a') - C_teacher(a)|.
        dimension: d, how many numbers a state has.
        kl: the divergence itself, estimated.
        kl_error: standard error of `kl`.
        matched: share of the noises for which a' was found. The other figures are over these only.
        folded: share of them where the determinants' signs differ, for instance if the student maps several noises to
            one sample.
    """

    value: float
    radius: float
    log_det: float
    dimension: int
    kl: float
    kl_error: float
    matched: float
    folded: float


@entrance(student=instance(Student), discretization=instance(Discretization), teacher=instance(Teacher), x_T=STATES)
def kl_bound(
    student: Student, discretization: Discretization, teacher: Teacher, x_T: PyTree, cond: PyTree = None
) -> Bound:
    """The bound of LD3's theorem on KL(teacher || student), and an estimate of the divergence itself.

    Psi maps noise a ~ N(0, I) to states at t_min, and C(a) = log |det d Psi / d a|. For each a, Newton's method finds
    the student's noise a' of the teacher's sample, Psi_student(a') = Psi_teacher(a). By change of variables,

        KL(teacher || student) = E[(|a'|^2 - |a|^2) / 2 + C_student(a') - C_teacher(a)]
                              <= r^2 / 2 + r sqrt(d) + E|C_student(a') - C_teacher(a)|    if |a' - a| <= r for all a.

    Jacobians are exact: d directions in forward mode through every network call, and (d, d) matrices for each sample.

    - It is meant for the few numbers of an analytic model. On images of hsc32 (d = 1024; DPM-Solver++ 3M, 5 calls,
      uniform grid or times + coefficients) it means nothing: at two noises the student's least singular value was 1e-6
      to 8e-5, the teacher's 0.02 to 0.03; Newton's first step was 7 to 340 times sqrt(d), and further ones, followed
      for one noise, did not find a'. So nothing here estimates determinants by random probes.
    - If the student maps several noises to one sample, a' is one of them and `kl` is too large, not too small.
    - If no noise leads the student to a teacher's sample, the divergence is infinite: read `matched` first.
    - r is the largest over the given noises, and grows with their number; for linear maps it has no limit.

    Args:
        student: model, noise schedule, solver. States are compared as they are, before `decode`; no loss is used.
        discretization: the times and coefficients to run the student with.
        teacher: solver, grid and batch size; nothing is cached.
        x_T: n >= 2 initial states, scaled by the prior; an array or a pytree of arrays.
        cond: n conditions, or None.

    Raises:
        ValueError: if states lie on a manifold, a' is found for fewer than two noises, or the grid is unknown.

    Reference: Tong et al., arXiv:2405.15506, section 4 and its appendix.
    """
    student.schedule.space.require_vectors("the bound")
    if student.schedule.t_start is not None:
        raise ValueError("the bound is for initial states that are normal noise, not for noised data")
    count_of((x_T, cond), "x_T and cond")
    accurate = on_grid(teacher.grid, student.schedule, teacher.solver)
    solvers = (student.solver, discretization), (teacher.solver, accurate)
    terms = _compare(student.model, student.schedule, solvers, (x_T, cond), teacher.batch_size)
    terms = to_host(terms)
    matched = terms.matched.sum()
    if matched < 2:
        raise ValueError(
            f"the student's noise of the teacher's sample was found for {matched} of {len(terms.matched)} noises, "
            "which is fewer than 2: the student cannot make these samples, or the noises are too few"
        )
    d = sum(leaf[0].size for leaf in jax.tree.leaves(x_T))
    distance, energy, log_det, folded = (part[terms.matched].astype(np.float64) for part in terms[:-1])
    r, mean_log_det, each = float(distance.max()), float(np.abs(log_det).mean()), energy + log_det
    return Bound(
        value=r**2 / 2 + r * math.sqrt(d) + mean_log_det,
        radius=r,
        log_det=mean_log_det,
        dimension=d,
        kl=float(each.mean()),
        kl_error=float(each.std(ddof=1) / math.sqrt(matched)),
        matched=float(terms.matched.mean()),
        folded=float(folded.mean()),
    )


class _Terms(NamedTuple):
    """For each noise |a' - a|, (|a'|^2 - |a|^2) / 2, C_student(a') - C_teacher(a), and flags for `Bound`'s shares."""

    distance: Float[Array, "n"]
    energy: Float[Array, "n"]
    log_det: Float[Array, "n"]
    folded: Bool[Array, "n"]
    matched: Bool[Array, "n"]


@partial(jax.jit, static_argnums=4)
def _compare(
    model: Model,
    schedule: NoiseSchedule,
    solvers: tuple[tuple[Solver, Discretization], tuple[Solver, Discretization]],
    inputs: tuple[PyTree, PyTree],
    batch_size: int,
) -> _Terms:

    def each(x_T: PyTree, cond: PyTree) -> _Terms:
        x, unravel = ravel_pytree(x_T)

        def psi(solver: Solver, table: Table, a: Array) -> Array:
            x_T, batch_cond = jax.tree.map(lambda leaf: leaf[None], (unravel(schedule.prior_scale * a), cond))
            return ravel_pytree(integrate(model, schedule, solver, table, x_T, cond=batch_cond, remat=False))[0]

        student, teacher = (
            partial(psi, solver, discretization.table(schedule, solver)) for solver, discretization in solvers
        )
        a = x / schedule.prior_scale
        x_0, jacobian = _with_jacobian(teacher, a)
        own, step = _inverse(student, x_0, a)
        signs, log_dets = jnp.linalg.slogdet(jnp.stack([jax.jacfwd(student)(own), jacobian]))
        log_det = log_dets[0] - log_dets[1]
        matched = (step <= _CLOSE) & jnp.isfinite(log_det)
        return _Terms(jnp.linalg.norm(own - a), (own - a) @ (own + a) / 2, log_det, signs[0] != signs[1], matched)

    return in_batches(lambda batch: jax.vmap(each)(*batch), inputs, batch_size)


def _with_jacobian(psi: Map, a: Float[Array, "d"]) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
    def twice(a: Array) -> tuple[Array, Array]:
        x = psi(a)
        return x, x  # to differentiate, and as auxiliary output

    jacobian, x = jax.jacfwd(twice, has_aux=True)(a)
    return x, jacobian


def _inverse(psi: Map, x: Float[Array, "d"], start: Float[Array, "d"]) -> tuple[Float[Array, "d"], Float[Array, ""]]:
    """The a with psi(a) = x by Newton's method, and the root mean square of its last step.

    It tries the whole step, half of it, a quarter, ... and takes the one that ends nearest to x.
    """
    parts = 0.5 ** jnp.arange(_HALVINGS, dtype=x.dtype)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, a, _ = state
        here, jacobian = _with_jacobian(psi, a)
        whole = jnp.linalg.solve(jacobian, here - x)
        tried = a[None] - parts[:, None] * whole[None]
        left = jnp.linalg.norm(jax.vmap(psi)(tried) - x[None], axis=-1)
        return i + 1, tried[jnp.argmin(jnp.where(jnp.isnan(left), jnp.inf, left))], jnp.sqrt(jnp.mean(whole**2))

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < _STEPS) & (state[2] > _CLOSE)

    _, a, length = jax.lax.while_loop(goes_on, step, (jnp.int32(0), start, jnp.full((), jnp.inf, x.dtype)))
    return a, length
