"""Rotations as unit quaternions (w, x, y, z): product, exponential and logarithm, smooth at angle 0 and at angle pi."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_NEAR = 0.25  # squared angles below it go by series


def identity(*shape: int) -> Float[Array, "*shape 4"]:
    """The rotation by no angle, in an array of this shape."""
    return jnp.zeros((*shape, 4)).at[..., 0].set(1.0)


def product(a: Float[Array, "*s 4"], b: Float[Array, "*s 4"]) -> Float[Array, "*s 4"]:
    """The rotation a b: first b, then a. Hamilton's product."""
    scalar = a[..., :1] * b[..., :1] - jnp.sum(a[..., 1:] * b[..., 1:], -1, keepdims=True)
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + jnp.cross(a[..., 1:], b[..., 1:])
    return jnp.concatenate([scalar, vector], -1)


def inverse(q: Float[Array, "*s 4"]) -> Float[Array, "*s 4"]:
    """The inverse rotation: the conjugate."""
    return jnp.concatenate([q[..., :1], -q[..., 1:]], -1)


def normalized(q: Float[Array, "*s 4"]) -> Float[Array, "*s 4"]:
    """The quaternion of length 1."""
    return q / jnp.linalg.norm(q, axis=-1, keepdims=True)


def exp(v: Float[Array, "*s 3"]) -> Float[Array, "*s 4"]:
    """The rotation about v by the angle |v|: (cos(|v| / 2), v sin(|v| / 2) / |v|)."""
    square = jnp.sum(v * v, -1, keepdims=True) / 4
    cos = of_square(square, (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320), jnp.cos)
    sinc = of_square(square, (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880), lambda h: jnp.sin(h) / h)
    return jnp.concatenate([cos, sinc * v / 2], -1)


def log(q: Float[Array, "*s 4"]) -> Float[Array, "*s 3"]:
    """The rotation vector, axis times angle in [0, pi]; the inverse of `exp` up to full turns.

    v (angle / |v|) with angle = 2 atan2(|v|, w). At angle pi the two signs of the axis are the same rotation.
    """
    q = jnp.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    square = jnp.sum(v * v, -1, keepdims=True)
    near = square < _NEAR / 4 * w**2
    ratio = jnp.where(near, square, 0.0) / jnp.where(near, w, 1.0) ** 2
    series = _polynomial(ratio, [(-1) ** k / (2 * k + 1) for k in range(14)]) * 2 / jnp.where(near, w, 1.0)
    length = jnp.sqrt(jnp.where(near, 1.0, square))
    return v * jnp.where(near, series, 2 * jnp.arctan2(length, jnp.where(near, 1.0, w)) / length)


def rotate(q: Float[Array, "4"], x: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Rotate points about the origin: x + 2 w (v x x) + 2 v x (v x x)."""
    w, v = q[0], jnp.broadcast_to(q[1:], x.shape)
    turned = jnp.cross(v, x)
    return x + 2 * (w * turned + jnp.cross(v, turned))


def uniform(key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "*shape 4"]:
    """Uniformly distributed rotations."""
    return normalized(jax.random.normal(key, (*shape, 4)))


def of_square(
    square: Float[Array, "*s"], series: Sequence[float], formula: Callable[[Array], Array], near: float = _NEAR
) -> Float[Array, "*s"]:
    """An even function of x given x^2, by its series below `near` and by its formula in x elsewhere.

    Neither branch sees an argument at which its derivative is infinite, so that gradients are finite at 0.
    """
    small = square < near
    return jnp.where(
        small, _polynomial(jnp.where(small, square, 0.0), series), formula(jnp.sqrt(jnp.where(small, near, square)))
    )


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    value = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value
