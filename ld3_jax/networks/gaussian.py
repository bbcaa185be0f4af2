"""A Gaussian mixture, whose noise prediction is known in closed form: every output of this network can be checked."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.schedules import NoiseSchedule


class Mixture(NamedTuple):
    """A mixture of K isotropic Gaussians in D dimensions."""

    mean: Float[Array, "k d"]
    variance: Float[Array, "k"]
    weight: Float[Array, "k"]  # they add up to 1


def ring(components: int = 6, radius: float = 1.0, deviation: float = 0.1) -> Mixture:
    """Equal Gaussians evenly on a circle in the plane.

    Args:
        components: how many.
        radius: of the circle.
        deviation: standard deviation of each.
    """
    angles = 2 * np.pi * np.arange(components) / components
    mean = radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Mixture(
        jnp.asarray(mean, jnp.result_type(float)),
        jnp.full(components, deviation**2),
        jnp.full(components, 1 / components),
    )


def noise_model(mixture: Mixture, schedule: NoiseSchedule) -> Partial:
    """The exact noise prediction of a mixture.

    x_t is a mixture too, of N(alpha mean_k, alpha^2 variance_k + sigma^2), and eps = -sigma grad log p(x_t).

    Args:
        mixture: the data.
        schedule: the noise schedule.

    Returns:
        model(x, t, cond) -> eps for x (batch, d); cond is not used.
    """
    return Partial(_noise, schedule, mixture)


def _noise(
    schedule: NoiseSchedule, mixture: Mixture, x: Float[Array, "batch d"], t: Float[Array, ""], cond: PyTree = None
) -> Float[Array, "batch d"]:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = alpha**2 * mixture.variance + sigma**2
    offset = x[:, None, :] - alpha * mixture.mean[None]
    log_density = jnp.log(mixture.weight) - 0.5 * x.shape[-1] * jnp.log(variance)
    log_density = log_density[None] - 0.5 * (offset**2).sum(-1) / variance[None]
    share = jax.nn.softmax(log_density, -1)
    return sigma * (share[..., None] * offset / variance[None, :, None]).sum(1)
