"""Noise schedules: how much signal and how much noise a state holds at time t.

A diffusion model defines `x_t = alpha(t) x_0 + sigma(t) eps` with `eps ~ N(0, I)`. Everything a solver needs
follows from `log alpha` and `log sigma`, so a noise schedule is a frozen class with three formulas in the log domain:
both logarithms and the inverse of the half-log-SNR `lam = log(alpha / sigma)`, which decreases in t. No formula
subtracts nearly equal numbers, so that float32 keeps its digits at both ends. `NoiseSchedule` shows how to add one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.noise_schedule import NoiseSchedule
from ld3_jax.ranges import NUMBER, settle, shown

__all__ = ["NoiseSchedule", "RectifiedFlow", "VEGeometric", "VELinear", "VPCosine", "VPDiscrete", "VPLinear"]


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"the noise schedule needs {what}")


def _require_ascent(schedule: NoiseSchedule, *names: str, most: float = math.inf) -> None:
    """Fields are numbers, 0 < first < ... < most."""
    settle(schedule, dict.fromkeys(names, NUMBER))
    values = [0.0, *(getattr(schedule, name) for name in names), most]
    _require(all(a < b for a, b in pairwise(values)), f"0 < {' < '.join(names)} < {most}, got {values[1:-1]}")


@dataclass(frozen=True)
class VELinear(NoiseSchedule):
    """Variance exploding with time equal to noise: alpha = 1, sigma(t) = t.

    Attributes:
        sigma_min: noise level at which sampling ends.
        sigma_max: noise level at which sampling starts.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference: Karras et al., arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _require_ascent(self, "sigma_min", "sigma_max")

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def prior_scale(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.zeros_like(t)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.log(t)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.exp(-lam)


@dataclass(frozen=True)
class VEGeometric(NoiseSchedule):
    """Variance exploding at a constant rate: alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t, t in [0, 1].

    Attributes:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference: Song et al., arXiv:2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    t_min = 0.0
    t_max = 1.0

    def __post_init__(self) -> None:
        _require_ascent(self, "sigma_min", "sigma_max")

    @property
    def prior_scale(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.zeros_like(t)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return low + t * (high - low)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (-lam - low) / (high - low)


def _half_log_one_minus_exp(log_alpha: Array) -> Array:
    """log sigma of a variance-preserving schedule: log(1 - alpha^2) / 2."""
    return 0.5 * jnp.log(-jnp.expm1(2 * log_alpha))


@dataclass(frozen=True)
class VPLinear(NoiseSchedule):
    """Variance preserving with linear beta: log alpha = -t beta_0 / 2 - t^2 (beta_1 - beta_0) / 4.

    Attributes:
        beta_0: rate of noise at t = 0; equal to beta_1 for a constant rate.
        beta_1: rate of noise at t = 1.
        t_min: time at which sampling ends.
        t_max: time at which sampling starts.

    Raises:
        ValueError: unless 0 < beta_0 <= beta_1 and 0 < t_min < t_max.

    Reference: Song et al., arXiv:2011.13456.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _require_ascent(self, "t_min", "t_max")
        settle(self, {"beta_0": NUMBER, "beta_1": NUMBER})
        rates = (self.beta_0, self.beta_1)
        _require(0 < rates[0] <= rates[1] < math.inf, f"0 < beta_0 <= beta_1 < inf, got {rates}")

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return _half_log_one_minus_exp(self.log_alpha(t))

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The root of the quadratic in t, written so that beta_0 == beta_1 divides by nothing."""
        beta_0, rise, minus_log_alpha_2 = self.beta_0, self.beta_1 - self.beta_0, jnp.logaddexp(-2 * lam, 0.0)
        return 2 * minus_log_alpha_2 / (jnp.sqrt(beta_0**2 + 2 * rise * minus_log_alpha_2) + beta_0)


_COSINE_S = 0.008
_THETA_0 = math.pi / 2 * _COSINE_S / (1 + _COSINE_S)


@dataclass(frozen=True)
class VPCosine(NoiseSchedule):
    """Variance preserving, alpha(t) = cos(theta(t)) / cos(theta(0)), theta(t) = (t + s) / (1 + s) pi / 2, s = 0.008.

    Sampling starts at t_max = 0.9946, before the singularity at 1.

    Attributes:
        t_min: time at which sampling ends.

    Raises:
        ValueError: unless 0 < t_min < 0.9946.

    Reference: Nichol and Dhariwal, arXiv:2102.09672; t_max as Lu et al., arXiv:2206.00927.
    """

    t_min: float = 1e-3

    t_max = 0.9946

    def __post_init__(self) -> None:
        _require_ascent(self, "t_min", most=self.t_max)

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log(cos(theta) / cos(theta_0)).

        Near t = 0 alpha is close to 1: there log(1 - sigma^2) has the digits that log(cos) lacks. Near t = 1 the cosine
        is the sine of a small angle.
        """
        small = jnp.minimum(t, 0.5)
        near_data = 0.5 * jnp.log1p(-jnp.exp(2 * self.log_sigma(small)))
        near_noise = jnp.log(jnp.sin(math.pi / 2 * (1 - t) / (1 + _COSINE_S))) - math.log(math.cos(_THETA_0))
        return jnp.where(t < 0.5, near_data, near_noise)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log(1 - alpha^2) / 2, by 1 - alpha^2 = sin(theta + theta_0) sin(theta - theta_0) / cos(theta_0)^2."""
        delta = math.pi / 2 * t / (1 + _COSINE_S)
        return 0.5 * (jnp.log(jnp.sin(2 * _THETA_0 + delta)) + jnp.log(jnp.sin(delta))) - math.log(math.cos(_THETA_0))

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """From tan(theta) = sqrt(exp(-2 lam) + sin(theta_0)^2) / cos(theta_0), by the tangent of a difference."""
        ratio_2 = jnp.exp(-2 * lam)
        root = jnp.sqrt(ratio_2 + math.sin(_THETA_0) ** 2)
        tan, tan_0 = root / math.cos(_THETA_0), math.tan(_THETA_0)
        difference = ratio_2 / (math.cos(_THETA_0) * (root + math.sin(_THETA_0)))
        return jnp.arctan(difference / (1 + tan * tan_0)) * (2 * (1 + _COSINE_S) / math.pi)


_LEAST = float(np.finfo(np.float32).eps) ** 2


@dataclass(frozen=True)
class VPDiscrete(NoiseSchedule):
    """Variance preserving as trained on N discrete steps; log alpha is piecewise linear in t in [1/N, 1].

    Attributes:
        alphas_cumprod: (N,) alpha^2 of each step, as a DDPM checkpoint stores it; any sequence or array, kept as a
            tuple. Step i has t = (i + 1) / N.

    Raises:
        ValueError: unless the numbers lie between 1.4e-14 and 1 and decrease, as float32 tells them apart.

    Reference: Lu et al., arXiv:2206.00927, appendix D.
    """

    alphas_cumprod: Sequence[float] | np.ndarray | Array

    t_max = 1.0

    def __post_init__(self) -> None:
        a = np.asarray(self.alphas_cumprod)
        valid = jnp.issubdtype(a.dtype, jnp.floating) and a.ndim == 1 and a.size > 1
        a = a.astype(np.float64) if valid else np.zeros(2)
        # With less signal than float32's rounding, squared, a grid would spend most steps on signal that no state
        # holds.
        valid = a.min() >= _LEAST and a[0] < 1 and np.all(np.diff(np.log(a).astype(np.float32)) < 0)
        what = f"alphas_cumprod to be two or more numbers from 1 to {_LEAST:g} that decrease, as float32 tells them"
        if not valid:
            _require(False, f"{what} (zero-terminal SNR: end at 2^-24), got {shown(self.alphas_cumprod)}")
        object.__setattr__(self, "alphas_cumprod", tuple(a.tolist()))

    @property
    def t_min(self) -> float:
        return 1.0 / len(self.alphas_cumprod)

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        times, values = self._nodes(t.dtype)
        return jnp.interp(t, times, values)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return _half_log_one_minus_exp(self.log_alpha(t))

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The time, interpolated, at which log alpha is -log(1 + exp(-2 lam)) / 2."""
        times, values = self._nodes(lam.dtype)
        return jnp.interp(-0.5 * jnp.logaddexp(-2 * lam, 0.0), values[::-1], times[::-1])

    def _nodes(self, dtype: np.dtype) -> tuple[Array, Array]:
        n = len(self.alphas_cumprod)
        log_alphas = 0.5 * np.log(np.array(self.alphas_cumprod))
        return jnp.asarray(np.arange(1, n + 1) / n, dtype), jnp.asarray(log_alphas, dtype)


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """Straight paths from data to noise: alpha = 1 - t, sigma = t.

    At t = 1 the half-log-SNR is infinite, so sampling starts just before it.

    Attributes:
        t_min: time at which sampling ends.
        t_max: time at which sampling starts.

    Raises:
        ValueError: unless 0 < t_min < t_max < 1.

    Reference: Liu et al., arXiv:2209.03003.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        _require_ascent(self, "t_min", "t_max", most=1.0)

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.log1p(-t)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.log(t)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jax.nn.sigmoid(-lam)
