"""The bound of LD3's theorem: against closed forms of the divergence, and what it says of students that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import schedules, solvers
from ld3_jax.grids import grid
from ld3_jax.learning import kl_bound, make_student, on_grid
from ld3_jax.learning.discretization import no_change
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher, draw_noise

SCHEDULE, N = schedules.VPLinear(), 300
TEACHER = Teacher(Solver("dpmpp", 20, order=2), batch_size=N)
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.1]], np.float32)


def _gaussian(schedule, covariance, x, t, cond):
    """Exact for data from N(cond, covariance), whose states are split in two."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    joined = jnp.concatenate([x["first"], x["rest"]], -1) - alpha * cond
    eps = sigma * jnp.linalg.solve(alpha**2 * covariance + sigma**2 * jnp.eye(3), joined.T).T
    return {"first": eps[:, :1], "rest": eps[:, 1:]}


def split(x):
    return {"first": x[:, :1], "rest": x[:, 1:]}


def test_for_gaussian_data_it_is_the_closed_form():
    schedule, solver = schedules.VELinear(), Solver("ipndm", 6, order=2)
    model, mean = Partial(_gaussian, schedule, COVARIANCE), jnp.array([[0.5, -1.0, 0.3]])
    found = on_grid("edm", schedule, solver)

    def affine(solver, t):
        a = schedule.prior_scale * jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
        x_0 = solvers.sample(model, schedule, split(a), t, solver=solver, cond=jnp.tile(mean, (4, 1)))
        x_0 = np.concatenate([x_0["first"], x_0["rest"]], -1).astype(np.float64)
        return x_0[0], (x_0[1:] - x_0[0]).T

    def bound(a):
        x_T = split(schedule.prior_scale * a)
        return kl_bound(make_student(model, schedule, solver), found, TEACHER, x_T, jnp.tile(mean, (len(a), 1)))

    (own_mean, own), (mean_0, factor) = affine(solver, found.t), affine(TEACHER.solver, grid("logsnr", schedule, 20))
    ratio, shift = np.linalg.solve(own, factor), np.linalg.solve(own, mean_0 - own_mean)  # a' = ratio a + shift
    log_det = -np.linalg.slogdet(ratio)[1]
    kl = 0.5 * (np.sum(ratio**2) + shift @ shift - 3) + log_det
    moments = jnp.tile(np.sqrt(3) * jnp.concatenate([jnp.eye(3), -jnp.eye(3)]), (N // 6, 1))  # exact for quadratics
    exact, estimated = bound(moments), bound(draw_noise(jax.random.key(0), N, (3,)))
    np.testing.assert_allclose(exact.kl, kl, rtol=1e-3)
    np.testing.assert_allclose(exact.log_det, abs(log_det), rtol=1e-3)
    moved = np.asarray(moments) @ ratio.T + shift - moments
    np.testing.assert_allclose(exact.radius, np.linalg.norm(moved, axis=-1).max(), rtol=1e-3)
    assert exact.value == pytest.approx(exact.radius**2 / 2 + exact.radius * np.sqrt(3) + exact.log_det)
    assert kl < exact.value < estimated.value  # the largest radius grows with the noises
    assert abs(estimated.kl - kl) < 3 * estimated.kl_error < kl
    assert (exact.dimension, exact.matched, exact.folded) == (3, 1, 0)


def of_mixture(nfe, mixture, change=lambda coefficients: coefficients):
    solver = Solver("ddim", nfe)
    found = on_grid("edm", SCHEDULE, solver)
    found = found._replace(coefficients=change(no_change(found.table(SCHEDULE, solver), 1)))
    student = make_student(gaussian.noise_model(mixture, SCHEDULE), SCHEDULE, solver)
    return kl_bound(student, found, TEACHER, draw_noise(jax.random.key(0), N, (2,)))


def test_it_is_above_the_divergence_and_both_fall_with_more_calls():
    few, many = (of_mixture(nfe, gaussian.ring()) for nfe in (5, 10))
    assert 0 < 5 * many.kl_error < many.kl < few.kl / 3
    assert many.kl < many.value < few.value / 3
    assert few.kl < few.value


def test_for_a_mixture_it_is_the_quadrature_of_its_densities():
    """In both coordinates apart, maps are monotone, and densities follow from them on a line of noise."""
    mean = np.stack(np.meshgrid([-1.0, 0.5, 1.5], [-0.5, 1.0], indexing="ij"), -1).reshape(6, 2)
    mixture = gaussian.Mixture(jnp.asarray(mean, jnp.float32), jnp.full(6, 0.1), jnp.full(6, 1 / 6))
    a = np.linspace(-12, 12, 4801)
    model, line = gaussian.noise_model(mixture, SCHEDULE), jnp.asarray(np.stack([a, a], -1), jnp.float32)

    def maps(solver, name):
        x_0 = solvers.sample(model, SCHEDULE, line, grid(name, SCHEDULE, solver.n_steps), solver=solver)
        return np.asarray(x_0, np.float64).T

    kl = 0.0
    for teachers, own in zip(maps(TEACHER.solver, "logsnr"), maps(Solver("ddim", 5), "edm"), strict=True):
        back = np.interp(teachers, own, a)  # the student's noise
        inner = np.abs(a) < 5
        each = ((back**2 - a**2) / 2)[inner] - np.log(np.gradient(back, a)[inner])
        kl += np.sum(each * np.exp(-(a[inner] ** 2) / 2)) * (a[1] - a[0]) / np.sqrt(2 * np.pi)
    bound = of_mixture(5, mixture)
    assert abs(bound.kl - kl) < 3 * bound.kl_error < kl
    assert (bound.matched, bound.folded) == (1, 0)


@pytest.mark.parametrize(
    ("base", "predict", "matched", "folded"),
    [(-20.0, (4, 4.0), (1, 1), (0.1, 0.5)), (-10.0, (2, 6.0), (0.5, 0.95), (0, 0.1))],
    ids=["folds", "unmatched"],
)
def test_folds_and_noises_without_a_match_are_told(base, predict, matched, folded):
    row, value = predict

    def wrong(coefficients):
        return coefficients._replace(
            base=coefficients.base.at[-1].set(base), predict=coefficients.predict.at[row].set(value)
        )

    bound = of_mixture(5, gaussian.ring(), wrong)
    assert matched[0] <= bound.matched <= matched[1]
    assert folded[0] <= bound.folded <= folded[1]
    assert np.isfinite(bound).all()


def test_a_student_of_one_sample_matches_nothing():
    with pytest.raises(ValueError, match=f"was found for 0 of {N} noises"):
        of_mixture(5, gaussian.ring(), lambda c: c._replace(base=c.base - 1, predict=c.predict - 1))
