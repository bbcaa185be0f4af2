"""Hand-made time grids: n + 1 descending times from t_max to t_min."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.published import PUBLISHED
from ld3_jax.schedules import NoiseSchedule


def grid(name: str, schedule: NoiseSchedule, n: int) -> Float[Array, "{n}+1"]:
    """A hand-made grid.

    With u = i / n for i = 0..n:
        uniform    even in t
        quadratic  t = t_min + (t_max - t_min) (1 - u)^2
        logsnr     even in the half-log-SNR lam
        edm        s = sigma/alpha with s^(1/7) even
    and those of `published.PUBLISHED`, for the models that they were made for.

    Args:
        name: one of GRIDS, or of `published.PUBLISHED`.
        schedule: the noise schedule.
        n: number of steps, at least 1.

    Returns:
        (n + 1,) descending times, exactly t_max and t_min at the ends.

    Raises:
        ValueError: if the name is unknown, n < 1, the noise schedule has no finite lam at its ends, or a published
            grid is for another noise schedule.

    Reference: Lu et al., arXiv:2206.00927 (uniform, logsnr); Song et al., arXiv:2010.02502 (quadratic); Karras et al.,
    arXiv:2206.00364 (edm, rho = 7).
    """
    known = {**GRIDS, **{name: levels.times for name, levels in PUBLISHED.items()}}
    if name not in known:
        raise ValueError(f"grid must be one of {sorted(known)}, got {name!r}")
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    check_ends(schedule, jnp.result_type(float))
    return _points(known[name], schedule, n)


@functools.partial(jax.jit, static_argnames=("time_at", "n"))
def _points(time_at: Callable[[NoiseSchedule, Array], Array], schedule: NoiseSchedule, n: int) -> Array:
    t = time_at(schedule, jnp.linspace(0.0, 1.0, n + 1))
    return t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


@functools.cache
def check_ends(schedule: NoiseSchedule, dtype: jnp.dtype) -> None:
    """Refuse a noise schedule whose lam is not finite at its ends, or does not grow from t_max to t_min.

    Raises:
        ValueError: it names the values.
    """
    with jax.ensure_compile_time_eval():
        first, last = np.asarray(schedule.lam(jnp.asarray([schedule.t_max, schedule.t_min], dtype)))
    if not (np.isfinite([first, last]).all() and first < last):
        raise ValueError(
            f"the half-log-SNR of {schedule} must be finite and grow from t_max to t_min, got {first} at "
            f"{schedule.t_max} and {last} at {schedule.t_min}"
        )


def uniform(schedule: NoiseSchedule, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Even in t."""
    return schedule.t_max + (schedule.t_min - schedule.t_max) * u


def quadratic(schedule: NoiseSchedule, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """t_min + (t_max - t_min) (1 - u)^2."""
    return schedule.t_min + (schedule.t_max - schedule.t_min) * (1 - u) ** 2


def logsnr(schedule: NoiseSchedule, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Even in the half-log-SNR."""
    start, width = _lam_range(schedule, u.dtype)
    return schedule.inverse_lam(start + width * u)


def edm(schedule: NoiseSchedule, u: Float[Array, "*s"], rho: float = 7.0) -> Float[Array, "*s"]:
    """(sigma / alpha)^(1 / rho) is even."""
    start, width = _lam_range(schedule, u.dtype)
    first, last = jnp.exp(-start / rho), jnp.exp(-(start + width) / rho)
    return schedule.inverse_lam(-rho * jnp.log(first + (last - first) * u))


# Each gives the time at u in [0, 1], from t_max at 0 to t_min at 1.
GRIDS = {"uniform": uniform, "quadratic": quadratic, "logsnr": logsnr, "edm": edm}


def _lam_range(schedule: NoiseSchedule, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Where lam starts, and how far it goes."""
    ends = schedule.lam(jnp.asarray([schedule.t_max, schedule.t_min], dtype))
    return ends[0], ends[1] - ends[0]
