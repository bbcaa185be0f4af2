"""Standard time grids: n + 1 descending times from t_max to t_min."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ld3_jax.published import PUBLISHED, if_timesteps
from ld3_jax.ranges import CALLS, check, entrance, instance, one_of
from ld3_jax.schedules import NoiseSchedule

TimeAt = Callable[[NoiseSchedule, Array], Array]


@entrance(schedule=instance(NoiseSchedule), n=CALLS)
def grid(name: str, schedule: NoiseSchedule, n: int) -> Float[Array, "{n}+1"]:
    """A standard grid.

    With u = i / n for i = 0..n:
        uniform    even in t
        quadratic  t = t_min + (t_max - t_min) (1 - u)^2
        logsnr     even in the half-log-SNR lam
        edm        s = sigma/alpha with s^(1/7) even
    and the lists of `published.PUBLISHED`, for the models that they were made for.

    Args:
        name: one of GRIDS or of `published.PUBLISHED`.
        schedule: the noise schedule.
        n: number of steps, from 1 to 10,000.

    Returns:
        (n + 1,) descending times, exactly t_max and t_min at the ends.

    Raises:
        ValueError: if the name or n is not one of these, the noise schedule has no finite lam at its ends, times would
            not descend, or a published grid is for another noise schedule.

    Reference: Lu et al., arXiv:2206.00927 (uniform, logsnr); Song et al., arXiv:2010.02502 (quadratic); Karras et al.,
    arXiv:2206.00364 (edm, rho = 7).
    """
    check({"grid": name}, {"grid": one_of(known())})
    check_ends(schedule, jnp.result_type(float))
    t = _points(known()[name], schedule, n)
    check_descent(t, f"the grid {name!r} of", schedule)
    return t


def known() -> dict[str, TimeAt]:
    """GRIDS and `published.PUBLISHED` by name: times as functions of the noise schedule and of u in [0, 1]."""
    return {**GRIDS, **{name: levels.times for name, levels in PUBLISHED.items()}}


def check_descent(t: Float[Array, "n_points"], *what: object) -> None:
    """Refuse times that are not finite or do not descend; tracers are not checked.

    Raises:
        ValueError: it says what they are.
    """
    if not isinstance(t, Tracer) and not (np.diff(np.asarray(t)) < 0).all():
        raise ValueError(f"{' '.join(map(str, what))} must descend, got {np.asarray(t).tolist()!s:.200}")


@functools.partial(jax.jit, static_argnames=("time_at", "n"))
def _points(time_at: TimeAt, schedule: NoiseSchedule, n: int) -> Array:
    t = time_at(schedule, jnp.linspace(0.0, 1.0, n + 1))
    return t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


def check_times(
    t: ArrayLike, t_c: ArrayLike, schedule: NoiseSchedule | None = None, *, whole: bool = False, to_zero: bool = False
) -> None:
    """Refuse times that no solver can run on: t and t_c are finite and in the noise schedule's range, and t descends.

    Args:
        t, t_c: (n,) or (n, parts) times; t_c may repeat a value. Traced ones are not checked.
        schedule: the noise schedule; None for any.
        whole: whether t must run from t_max to t_min, and not only lie between them.
        to_zero: whether the last step ends without noise. Then t may end at 0, or repeat its last time.

    Raises:
        ValueError: it names what was given, what is allowed, and the remedy.
    """
    for name, times, least in (("t", t, 1e-6), ("t_c", t_c, -1e-4)):
        if isinstance(times, Tracer):
            continue
        given = np.asarray(times, float)
        if not np.isfinite(given).all():
            raise ValueError(f"{name} must be finite, got {given.tolist()!s:.500}")
        falls = -np.diff(given, axis=0)
        short = falls < least * (np.abs(given[:-1]) + 1e-3)  # a step in the last digits of single precision is no step
        if to_zero:
            short[-1:] = falls[-1:] < 0
        if short.any():
            last = "; a last step of no length is sampled with last_sigma=0, and not learned"
            last *= bool((falls[-1:] >= 0).all() and not short[:-1].any())
            raise ValueError(f"{name} must descend, got {given.tolist()!s:.500} in {jnp.result_type(times)}{last}")
        if schedule is not None:
            _check_range(name, given, schedule, whole and name == "t", to_zero)


def _check_range(name: str, given: np.ndarray, schedule: NoiseSchedule, whole: bool, to_zero: bool) -> None:
    parts = schedule.parts if given.ndim > 1 else (schedule,)
    if given.shape[1:] not in ((), (len(parts),)):
        raise ValueError(f"{name} has times for {given.shape[1]} parts, the noise schedule has {len(parts)}")
    most, least = np.transpose([(part.t_max, part.t_min) for part in parts])
    allowed = np.clip(given, least, most)
    if whole:
        allowed[:1], allowed[-1:] = most, least
    elif to_zero and not given[-1:].any():
        allowed[-1:] = 0
    if (np.abs(given - allowed) > 1e-6 + 5e-6 * np.abs(allowed)).any():
        ends_at_0 = given.min() == 0 < least.min() and not (whole or to_zero)
        remedy = "; a solver with last_sigma=0 ends at 0, others at t_min" * bool(ends_at_0)
        raise ValueError(
            f"{name} must {'run' if whole else 'lie'} from {most.max():g} to {least.min():g}, the noise schedule's "
            f"range, got {given.max():g} to {given.min():g}{if_timesteps(given.max(), most.max()) or remedy}"
        )


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


# Each gives the time at u in [0, 1], from t_max at u = 0 to t_min at u = 1.
GRIDS = {"uniform": uniform, "quadratic": quadratic, "logsnr": logsnr, "edm": edm}


def _lam_range(schedule: NoiseSchedule, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Where lam starts, and the length of its range."""
    ends = schedule.lam(jnp.asarray([schedule.t_max, schedule.t_min], dtype))
    return ends[0], ends[1] - ends[0]
