"""Noise kernels of translations, rotations and angles: log densities, exact scores, and draws.

In float32 nothing overflows and nothing is NaN, whatever the scale, at angle 0 and at angle pi alike.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ld3_jax.poses.rotations import of_square

_TURNS = 2  # full turns either way: exact to 1e-5 up to sigma = pi, to 1e-8 up to 2.6
_ANGLES = 4096  # size of the table from which angles of rotations are drawn


def gaussian(x: Float[Array, "*s d"], sigma: Float[Array, ""]) -> tuple[Float[Array, "*s"], Float[Array, "*s d"]]:
    """log N(x; 0, sigma^2 I), and its gradient, -x / sigma^2."""
    value = -0.5 * jnp.sum((x / sigma) ** 2, -1) - x.shape[-1] * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))
    return value, -x / sigma**2


def wrap(angle: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The same angle in [-pi, pi]."""
    return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))


def wrapped_normal(angle: Float[Array, "*s"], sigma: Float[Array, ""]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """The log density of a normal angle with mean 0, known up to full turns, and its derivative.

    log sum_k N(angle + 2 pi k), and -(the mean turned angle) / sigma^2.

    Reference: Jing et al., arXiv:2206.01729.
    """
    nearest, s = wrap(angle), sigma**2
    share, turned = jnp.ones_like(nearest), jnp.zeros_like(nearest)
    for turn in (2 * math.pi * k for k in range(-_TURNS, _TURNS + 1) if k):
        # Relative to the nearest image, which is the largest: no exponential overflows.
        image = jnp.exp(-turn * (turn + 2 * nearest) / (2 * s))
        share, turned = share + image, turned + turn * image
    value = jnp.log(share) - nearest**2 / (2 * s) - jnp.log(sigma) - 0.5 * math.log(2 * math.pi)
    return value, -(nearest + turned / share) / s


def igso3(v: Float[Array, "*s 3"], sigma: Float[Array, ""]) -> tuple[Float[Array, "*s"], Float[Array, "*s 3"]]:
    """The log density of the isotropic Gaussian on SO(3), at the rotation vector v, with respect to the Haar measure.

    With w = |v| and s = sigma^2 the density is the heat kernel
        f = sum_l (2 l + 1) exp(-l (l + 1) s / 2) sin((l + 1/2) w) / sin(w / 2).
    Poisson's summation turns this series, which is slow for small s, into one that is fast for all s of use:
        f = exp(s / 8) sqrt(2 pi) s^(-3/2) exp(-w^2 / 2 s) w / sin(w / 2) B
        B = 1 + 2 sum_k (-1)^k exp(-2 pi^2 k^2 / s) (cosh(a) - (2 pi k)^2 / s sinh(a) / a),   a = 2 pi k w / s,
    where k = 1 is enough. The uniform distribution has density 1.

    Args:
        v: rotation vectors with |v| <= pi.
        sigma: at most 1.6, up to where the formula is exact to 1e-6. A small one is the deviation of each of v's parts.

    Returns:
        log f, and its gradient along small rotations of the body, exp(v) -> exp(v) exp(u), at u = 0. It is along v,
        2 v d log f / d |v|^2, and vanishes at angle 0 and at angle pi.

    Reference: Leach et al., ICLR 2022 workshop GTRL; Corso et al., arXiv:2210.01776, where it is the noise.
    """
    square = jnp.sum(v * v, -1)
    value, slope = jax.jvp(lambda square: _igso3(square, sigma), (square,), (jnp.ones_like(square),))
    return value, 2 * slope[..., None] * v


def draw_igso3(key: PRNGKeyArray, sigma: Float[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "*shape 3"]:
    """Rotation vectors of the isotropic Gaussian on SO(3): a uniform axis, the angle by its distribution function."""
    axis_key, angle_key = jax.random.split(key)
    axis = jax.random.normal(axis_key, (*shape, 3))
    # The table is fine where the angles lie: for a small sigma, near 0.
    largest = jnp.minimum(math.pi, 8 * sigma)
    angles = largest * jnp.asarray(np.linspace(0.0, 1.0, _ANGLES))
    density = jnp.exp(_igso3(angles**2, sigma)) * 2 * jnp.sin(angles / 2) ** 2
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density[1:] + density[:-1])])
    angle = jnp.interp(jax.random.uniform(angle_key, shape), cumulative / cumulative[-1], angles)
    return angle[..., None] * axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)


def _igso3(square: Array, sigma: Array) -> Array:
    """The log density as a function of the squared angle, smooth at 0."""
    s = sigma**2
    ratio = of_square(
        square,
        (math.log(2), 1 / 24, 1 / 2880, 1 / 181440, 1 / 9676800, 1 / 479001600),
        lambda w: jnp.log(w / jnp.sin(w / 2)),
        near=1.0,
    )
    constant = s / 8 + 0.5 * math.log(2 * math.pi) - 3 * jnp.log(sigma)
    return constant - square / (2 * s) + ratio + jnp.log1p(-2 * _image(square, s))


def _image(square: Array, s: Array) -> Array:
    """exp(-b) (cosh(a) - 2 b sinh(a) / a), b = 2 pi^2 / s; a <= b, so that no exponential overflows."""
    b = 2 * math.pi**2 / s
    c, rate = 2 * b, 2 * math.pi / s

    def formula(a: Array) -> Array:
        rising, falling = jnp.exp(a - b) / 2, jnp.exp(-a - b) / 2
        return rising + falling - c * (rising - falling) / a

    cosh = (1.0, 1 / 2, 1 / 24, 1 / 720, 1 / 40320, 1 / 3628800)
    sinhc = (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880, 1 / 39916800)
    a_2 = rate**2 * square
    near = jnp.exp(-b) * (of_square(a_2, cosh, jnp.zeros_like, 1.0) - c * of_square(a_2, sinhc, jnp.zeros_like, 1.0))
    return near + of_square(a_2, (0.0,), formula, 1.0)
