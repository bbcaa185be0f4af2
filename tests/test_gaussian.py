"""The Gaussian mixture: its noise prediction is exact, and its teacher draws the ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import grids, schedules
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher, draw_noise, make_pairs

UNEVEN = gaussian.Mixture(
    mean=np.array([[0.5, -1.0, 2.0], [-1.5, 0.3, 0.0]]), variance=np.array([0.3, 0.05]), weight=np.array([0.2, 0.8])
)


@pytest.mark.parametrize("mixture", [None, UNEVEN], ids=["ring", "uneven"])
@pytest.mark.parametrize(
    "schedule", [schedules.VPLinear(), schedules.VELinear()], ids=lambda schedule: type(schedule).__name__
)
def test_noise_is_the_score_of_the_density(schedule, mixture, float64):
    mixture = gaussian.ring() if mixture is None else jax.tree.map(jnp.asarray, mixture)

    def log_density(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = alpha**2 * mixture.variance + sigma**2
        normal = jax.scipy.stats.norm.logpdf(x[None], alpha * mixture.mean, jnp.sqrt(variance)[:, None])
        return jax.scipy.special.logsumexp(normal.sum(-1), b=mixture.weight)

    x = jax.random.normal(jax.random.key(0), (20, mixture.mean.shape[1]))
    t = grids.grid("edm", schedule, 4)
    noise = jax.jit(jax.vmap(gaussian.noise_model(mixture, schedule), (None, 0)))(x, t)
    score = jax.jit(jax.vmap(jax.vmap(jax.grad(log_density), (0, None)), (None, 0)))(x, t)
    np.testing.assert_allclose(noise, -schedule.sigma(t)[:, None, None] * score, rtol=1e-9, atol=1e-12)


def test_samples_of_many_steps_lie_on_the_ring():
    schedule, accurate = schedules.VPLinear(), Teacher(Solver("dpmpp", 50, order=2), "logsnr", batch_size=600)
    model = gaussian.noise_model(gaussian.ring(), schedule)
    x_0 = make_pairs(model, schedule, draw_noise(jax.random.key(0), 600, (2,)), teacher=accurate).x_0
    offsets = np.linalg.norm(np.asarray(x_0)[:, None] - np.asarray(gaussian.ring().mean), axis=-1)
    assert offsets.min(1).max() < 0.5
    np.testing.assert_allclose(np.sqrt(np.mean(offsets.min(1) ** 2) / 2), 0.1, rtol=0.1)
    np.testing.assert_allclose(np.bincount(offsets.argmin(1), minlength=6), 100, atol=35)


def test_the_mixtures_numbers_are_leaves_of_the_model():
    model = gaussian.noise_model(gaussian.ring(components=4), schedules.VPLinear())
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(4, 2), (4,), (4,)]
