"""Distances between a student's samples and its teacher's, one number a sample."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax.networks.lpips import load as lpips


def l2(x: Float[Array, "batch *shape"], y: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """Mean squared error of each sample, mean_i (x_i - y_i)^2."""
    return jnp.mean((x - y) ** 2, axis=tuple(range(1, x.ndim)))


def l1(x: Float[Array, "batch *shape"], y: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """Mean absolute error of each sample, mean_i |x_i - y_i|."""
    return jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim)))


def rmse(x: Float[Array, "batch *shape"], y: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """Root mean squared error of each sample, sqrt(mean_i (x_i - y_i)^2).

    With few steps some samples end far from the teacher's, in another basin; under the root they weigh less, which
    serves the median more than the mean. The gradient is finite where x = y, too.
    """
    return jnp.sqrt(l2(x, y) + 1e-12)


__all__ = ["LOSSES", "l1", "l2", "lpips", "rmse", "slope"]


def slope(loss: Callable) -> Callable[[Array], Array]:
    """phi' of a loss that is phi(s) with s the mean squared error, for learners that reweight least squares.

    Args:
        loss: `l2` or `rmse`, as it is or in a `Partial`.

    Raises:
        ValueError: if it is another loss.
    """
    function = getattr(loss, "func", loss)
    if function not in _SLOPES:
        known = sorted(known.__name__ for known in _SLOPES)
        raise ValueError(f"Levenberg-Marquardt needs a loss that is a function of the squared error, one of {known}")
    return _SLOPES[function]


_SLOPES = {l2: jnp.ones_like, rmse: lambda s: 0.5 / jnp.sqrt(s + 1e-12)}

LOSSES = {"l1": l1, "l2": l2, "rmse": rmse}
