"""What the families' formulas share: phi functions, factors of one step, and the order of each step.

Notation of all families: `h = lam[i+1] - lam[i]` with `lam` the half-log-SNR; primes mark the end of a step; `D`
predicts data, `eps` noise; `phi_1(z) = (e^z - 1) / z`, `phi_{k+1}(z) = (phi_k(z) - 1/k!) / z`. Orders are static NumPy
integers: the weights of an order are computed only for the rows that have it, because a masked 0/0 spoils gradients.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule

Points = Float[Array, "n_points"]

_TAYLOR_BELOW = 1.0
_TAYLOR_TERMS = 18


def phi(k: int, z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """phi_k(z) of exponential integrators, accurate near 0 in float32.

    phi_k(z) = sum_j z^j / (j + k)!, by that series for |z| < 1 and by recursion elsewhere.

    Args:
        k: index, at least 1.
        z: argument.

    Reference: Hochbruck and Ostermann, Acta Numerica 19 (2010), 209-286.
    """
    near = jnp.abs(z) < _TAYLOR_BELOW
    small, large = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    series = jnp.zeros_like(z)
    for j in reversed(range(_TAYLOR_TERMS)):
        series = series * small + 1 / math.factorial(j + k)
    recursion = jnp.expm1(large) / large
    for j in range(1, k):
        recursion = (recursion - 1 / math.factorial(j)) / large
    return jnp.where(near, series, recursion)


def noise_step(
    schedule: NoiseSchedule, start: Float[Array, "n"], end: Float[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """The factors of x and eps in DDIM's step for a noise prediction: alpha'/alpha and -sigma' expm1(h)."""
    h = schedule.lam(end) - schedule.lam(start)
    return jnp.exp(schedule.log_alpha(end) - schedule.log_alpha(start)), -schedule.sigma(end) * jnp.expm1(h)


def ratio(log_values: Points) -> Float[Array, "n_points-1"]:
    """Each value divided by its predecessor."""
    return jnp.exp(jnp.diff(log_values))


def orders_of_steps(n_steps: int, highest: int, lower_order_final: bool) -> np.ndarray:
    """The order of each step: it rises from 1 and, with lower_order_final, falls to 1 at the end."""
    step = np.arange(n_steps)
    orders = np.minimum(step + 1, highest)
    return np.minimum(orders, n_steps - step) if lower_order_final else orders


def rows_by_order(orders: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each order that occurs, with the rows that have it."""
    return [(int(p), np.flatnonzero(orders == p)) for p in np.unique(orders)]
