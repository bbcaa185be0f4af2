"""Noise schedules: how much signal and how much noise a state holds at time t.

A diffusion model defines `x_t = alpha(t) x_0 + sigma(t) eps` with `eps ~ N(0, I)`. Everything a solver needs
follows from `log alpha` and `log sigma`, so each family is three functions in the log domain: both logarithms and the
inverse of the half-log-SNR `lam = log(alpha / sigma)`, which decreases in t. No formula subtracts nearly equal numbers,
so that float32 keeps its digits at both ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class _Family(NamedTuple):
    log_alpha: Callable[..., Array]
    log_sigma: Callable[..., Array]
    inverse_lam: Callable[..., Array]


@jax.tree_util.register_static
@dataclass(frozen=True)
class NoiseSchedule:
    """The pair (alpha, sigma) as functions of time.

    It compares and hashes by value and is a pytree without leaves: pass it through `jax.jit` like any argument.

    Attributes:
        family: the name of the family of formulas.
        constants: the family's own constants.
        t_min: time at which sampling ends; the cleanest state.
        t_max: time at which sampling starts; nearly pure noise.
        prior_scale: standard deviation of the state at t_max, so that `x_T = prior_scale * z` with `z ~ N(0, I)`.
    """

    family: str
    constants: tuple[float, ...]
    t_min: float
    t_max: float
    prior_scale: float = 1.0

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log alpha(t), the log of the signal's factor."""
        return _FAMILIES[self.family].log_alpha(t, *self.constants)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log sigma(t), the log of the noise's standard deviation."""
        return _FAMILIES[self.family].log_sigma(t, *self.constants)

    def alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """alpha(t)."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """sigma(t)."""
        return jnp.exp(self.log_sigma(t))

    def lam(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Half the log signal-to-noise ratio, lam(t) = log(alpha(t) / sigma(t))."""
        return self.log_alpha(t) - self.log_sigma(t)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The time t at which the half-log-SNR is `lam`."""
        return _FAMILIES[self.family].inverse_lam(lam, *self.constants)


def ve_edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
    """Variance exploding with time equal to noise: alpha = 1, sigma(t) = t.

    Args:
        sigma_min: noise level at which sampling ends.
        sigma_max: noise level at which sampling starts.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference: Karras et al., arXiv:2206.00364.
    """
    _require(0 < sigma_min < sigma_max, f"0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return NoiseSchedule("ve_edm", (), sigma_min, sigma_max, prior_scale=sigma_max)


def ve_geometric(sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
    """Variance exploding at a constant rate: alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t, t in [0, 1].

    Args:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference: Song et al., arXiv:2011.13456.
    """
    _require(0 < sigma_min < sigma_max, f"0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return NoiseSchedule("ve_geometric", (math.log(sigma_min), math.log(sigma_max)), 0.0, 1.0, prior_scale=sigma_max)


def vp_linear(beta_0: float = 0.1, beta_1: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0) -> NoiseSchedule:
    """Variance preserving with linear beta: log alpha = -t beta_0 / 2 - t^2 (beta_1 - beta_0) / 4.

    Args:
        beta_0: rate of noise at t = 0; equal to beta_1 for a constant rate.
        beta_1: rate of noise at t = 1.
        t_min: time at which sampling ends.
        t_max: time at which sampling starts.

    Raises:
        ValueError: unless 0 < beta_0 <= beta_1 and 0 < t_min < t_max.

    Reference: Song et al., arXiv:2011.13456.
    """
    _require(0 < beta_0 <= beta_1, f"0 < beta_0 <= beta_1, got {beta_0} and {beta_1}")
    _require(0 < t_min < t_max, f"0 < t_min < t_max, got {t_min} and {t_max}")
    return NoiseSchedule("vp_linear", (beta_0, beta_1), t_min, t_max)


def vp_cosine(t_min: float = 1e-3) -> NoiseSchedule:
    """Variance preserving, alpha(t) = cos(theta(t)) / cos(theta(0)), theta(t) = (t + s) / (1 + s) pi / 2, s = 0.008.

    Sampling starts at t_max = 0.9946, short of the singularity at 1.

    Args:
        t_min: time at which sampling ends.

    Raises:
        ValueError: unless 0 < t_min < 0.9946.

    Reference: Nichol and Dhariwal, arXiv:2102.09672; t_max as Lu et al., arXiv:2206.00927.
    """
    _require(0 < t_min < 0.9946, f"0 < t_min < 0.9946, got {t_min}")
    return NoiseSchedule("vp_cosine", (0.008,), t_min, 0.9946)


def vp_discrete(alphas_cumprod: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """Variance preserving as trained on N discrete steps; log alpha is piecewise linear in t in [1/N, 1].

    Args:
        alphas_cumprod: (N,) alpha^2 of each step, as a DDPM checkpoint stores it. Step i has t = (i + 1) / N.

    Raises:
        ValueError: unless the numbers lie strictly between 0 and 1 and decrease.

    Reference: Lu et al., arXiv:2206.00927, appendix D.
    """
    a = np.asarray(alphas_cumprod, np.float64)
    valid = a.ndim == 1 and a.size > 1 and a[-1] > 0 and a[0] < 1 and np.all(np.diff(a) < 0)
    _require(bool(valid), "alphas_cumprod to be at least two decreasing numbers strictly between 0 and 1")
    return NoiseSchedule("vp_discrete", tuple((0.5 * np.log(a)).tolist()), 1.0 / a.size, 1.0)


def rectified_flow(t_min: float = 1e-3, t_max: float = 0.999) -> NoiseSchedule:
    """Straight paths from data to noise: alpha = 1 - t, sigma = t.

    At t = 1 the half-log-SNR is infinite, so sampling starts just short of it.

    Args:
        t_min: time at which sampling ends.
        t_max: time at which sampling starts.

    Raises:
        ValueError: unless 0 < t_min < t_max < 1.

    Reference: Liu et al., arXiv:2209.03003.
    """
    _require(0 < t_min < t_max < 1, f"0 < t_min < t_max < 1, got {t_min} and {t_max}")
    return NoiseSchedule("rectified_flow", (), t_min, t_max)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"the noise schedule needs {what}")


def _half_log_one_minus_exp(log_alpha: Array) -> Array:
    """log sigma of a variance-preserving schedule: log(1 - alpha^2) / 2."""
    return 0.5 * jnp.log(-jnp.expm1(2 * log_alpha))


def _vp_log_alpha_at(lam: Array) -> Array:
    """log alpha of a variance-preserving schedule where the half-log-SNR is lam: -log(1 + exp(-2 lam)) / 2."""
    return -0.5 * jnp.logaddexp(-2 * lam, 0.0)


def _linear_log_alpha(t: Array, beta_0: float, beta_1: float) -> Array:
    return -0.25 * t**2 * (beta_1 - beta_0) - 0.5 * t * beta_0


def _linear_inverse_lam(lam: Array, beta_0: float, beta_1: float) -> Array:
    # The root of the quadratic in t, written so that beta_0 == beta_1 divides by nothing.
    minus_log_alpha_2 = jnp.logaddexp(-2 * lam, 0.0)
    return 2 * minus_log_alpha_2 / (jnp.sqrt(beta_0**2 + 2 * (beta_1 - beta_0) * minus_log_alpha_2) + beta_0)


def _cosine_angles(t: Array, s: float) -> tuple[float, Array]:
    """theta(0) and theta(t) - theta(0)."""
    return math.pi / 2 * s / (1 + s), math.pi / 2 * t / (1 + s)


def _cosine_log_sigma(t: Array, s: float) -> Array:
    # 1 - alpha^2 = sin(theta + theta_0) sin(theta - theta_0) / cos(theta_0)^2
    theta_0, delta = _cosine_angles(t, s)
    return 0.5 * (jnp.log(jnp.sin(2 * theta_0 + delta)) + jnp.log(jnp.sin(delta))) - math.log(math.cos(theta_0))


def _cosine_log_alpha(t: Array, s: float) -> Array:
    # Near t = 0 alpha is close to 1: there log(1 - sigma^2) has the digits that log(cos) lacks. Near t = 1 the cosine
    # is the sine of a small angle.
    theta_0, _ = _cosine_angles(t, s)
    small = jnp.minimum(t, 0.5)
    near_data = 0.5 * jnp.log1p(-jnp.exp(2 * _cosine_log_sigma(small, s)))
    near_noise = jnp.log(jnp.sin(math.pi / 2 * (1 - t) / (1 + s))) - math.log(math.cos(theta_0))
    return jnp.where(t < 0.5, near_data, near_noise)


def _cosine_inverse_lam(lam: Array, s: float) -> Array:
    # tan(theta) = sqrt(exp(-2 lam) + sin(theta_0)^2) / cos(theta_0), then the tangent of a difference.
    theta_0 = math.pi / 2 * s / (1 + s)
    ratio_2 = jnp.exp(-2 * lam)
    root = jnp.sqrt(ratio_2 + math.sin(theta_0) ** 2)
    tan, tan_0 = root / math.cos(theta_0), math.tan(theta_0)
    difference = ratio_2 / (math.cos(theta_0) * (root + math.sin(theta_0)))
    return jnp.arctan(difference / (1 + tan * tan_0)) * (2 * (1 + s) / math.pi)


def _discrete_nodes(log_alphas: tuple[float, ...], dtype: np.dtype) -> tuple[Array, Array]:
    n = len(log_alphas)
    return jnp.asarray(np.arange(1, n + 1) / n, dtype), jnp.asarray(np.array(log_alphas), dtype)


def _discrete_log_alpha(t: Array, *log_alphas: float) -> Array:
    times, values = _discrete_nodes(log_alphas, t.dtype)
    return jnp.interp(t, times, values)


def _discrete_inverse_lam(lam: Array, *log_alphas: float) -> Array:
    times, values = _discrete_nodes(log_alphas, lam.dtype)
    return jnp.interp(_vp_log_alpha_at(lam), values[::-1], times[::-1])


_FAMILIES = {
    "ve_edm": _Family(jnp.zeros_like, jnp.log, lambda lam: jnp.exp(-lam)),
    "ve_geometric": _Family(
        lambda t, low, high: jnp.zeros_like(t),
        lambda t, low, high: low + t * (high - low),
        lambda lam, low, high: (-lam - low) / (high - low),
    ),
    "vp_linear": _Family(
        _linear_log_alpha, lambda t, *betas: _half_log_one_minus_exp(_linear_log_alpha(t, *betas)), _linear_inverse_lam
    ),
    "vp_cosine": _Family(_cosine_log_alpha, _cosine_log_sigma, _cosine_inverse_lam),
    "vp_discrete": _Family(
        _discrete_log_alpha,
        lambda t, *values: _half_log_one_minus_exp(_discrete_log_alpha(t, *values)),
        _discrete_inverse_lam,
    ),
    "rectified_flow": _Family(lambda t: jnp.log1p(-t), jnp.log, lambda lam: jax.nn.sigmoid(-lam)),
}
