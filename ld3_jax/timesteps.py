"""Time grids: made by hand, and learned.

A grid of n steps is a vector of n + 1 descending times from t_max to t_min. The learned grid has its gaps as a softmax,
in half-log-SNR or in t, and next to it the *decoupled* times t_c at which the network is told to be.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax.coefficients import Coefficients
from ld3_jax.schedules import NoiseSchedule


class TimestepParams(NamedTuple):
    """What is learned: 2n - 1 numbers for n steps, and where they are learned too, the solver's coefficients."""

    logits: Float[Array, "n"]  # the gaps are softmax(logits)
    shifts: Float[Array, "n-1"]  # t_c - t at the inner points, in the units of the space
    coefficients: Coefficients | tuple[()] = ()  # changes of the solver's table; () where they are not learned


class _Space(NamedTuple):
    """A coordinate in which gaps and shifts are measured."""

    of_t: Callable[[NoiseSchedule, Array], Array]
    to_t: Callable[[NoiseSchedule, Array], Array]


SPACES = {
    "lambda": _Space(lambda schedule, t: schedule.lam(t), lambda schedule, lam: schedule.inverse_lam(lam)),
    "t": _Space(lambda schedule, t: t, lambda schedule, t: t),
}


def grid(name: str, schedule: NoiseSchedule, n: int) -> Float[Array, "{n}+1"]:
    """A hand-made grid.

    With u = i / n for i = 0..n:
        uniform    even in t
        quadratic  t = t_min + (t_max - t_min) (1 - u)^2
        logsnr     even in the half-log-SNR lam
        edm        s = sigma/alpha with s^(1/7) even

    Args:
        name: one of GRIDS.
        schedule: the noise schedule.
        n: number of steps, at least 1.

    Returns:
        (n + 1,) descending times, exactly t_max and t_min at the ends.

    Raises:
        ValueError: if the name is unknown or n < 1.

    Reference: Lu et al., arXiv:2206.00927 (uniform, logsnr); Song et al., arXiv:2010.02502 (quadratic); Karras et al.,
    arXiv:2206.00364 (edm, rho = 7).
    """
    if name not in GRIDS:
        raise ValueError(f"grid must be one of {sorted(GRIDS)}, got {name!r}")
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    return _with_ends(GRIDS[name](schedule, jnp.linspace(0.0, 1.0, n + 1)), schedule)


def from_params(
    params: TimestepParams, schedule: NoiseSchedule, space: str = "lambda", max_shift: float = 0.5
) -> tuple[Float[Array, "n_points"], Float[Array, "n_points"]]:
    """The grid that the parameters stand for.

    In the chosen coordinate the gaps are softmax(logits), scaled to the whole range, and at the inner points
    t_c = t + clip(shift, -b, b) with b = max_shift times the smallest gap. No gradient flows through b.

    Args:
        params: logits (n,) and shifts (n - 1,).
        schedule: the noise schedule.
        space: "lambda" (half-log-SNR) or "t".
        max_shift: bound on the shifts in units of the smallest gap; at most 0.5 keeps t_c in order.

    Returns:
        t and t_c, (n + 1,) each, descending, equal and exact at both ends.

    Raises:
        ValueError: if the space is unknown.

    Reference: Tong et al., arXiv:2405.15506, section 4.
    Differs from the paper: its code takes the bound in lambda space from the raw logits, so equal ones forbid shifts.
    """
    coordinate = _space(space)
    start, width = _range(coordinate, schedule, params.logits.dtype)
    gaps = jax.nn.softmax(params.logits)
    points = start + width * jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
    bound = shift_bound(params, schedule, space, max_shift)
    shifts = jnp.concatenate(
        [jnp.zeros_like(gaps[:1]), jnp.clip(params.shifts, -bound, bound), jnp.zeros_like(gaps[:1])]
    )
    to_t = coordinate.to_t
    return _with_ends(to_t(schedule, points), schedule), _with_ends(to_t(schedule, points + shifts), schedule)


def shift_bound(
    params: TimestepParams, schedule: NoiseSchedule, space: str = "lambda", max_shift: float = 0.5
) -> Float[Array, ""]:
    """The largest shift that counts, max_shift times the smallest gap; see `from_params`. It carries no gradient."""
    _, width = _range(_space(space), schedule, params.logits.dtype)
    return jax.lax.stop_gradient(max_shift * jnp.abs(width) * jax.nn.softmax(params.logits).min())


def to_params(
    t: Float[Array, "n_points"], t_c: Float[Array, "n_points"], schedule: NoiseSchedule, space: str = "lambda"
) -> TimestepParams:
    """The inverse of `from_params`, so that any grid can be a start. The logits have mean zero.

    Args:
        t: (n + 1,) descending times from t_max to t_min.
        t_c: (n + 1,) times given to the network.
        schedule: the noise schedule.
        space: "lambda" or "t".

    Raises:
        ValueError: if the space is unknown or the shapes differ.
    """
    coordinate = _space(space)
    if t.ndim != 1 or t.shape != t_c.shape or len(t) < 2:
        raise ValueError(f"t and t_c must be vectors of one length, at least 2, got shapes {t.shape} and {t_c.shape}")
    points, points_c = coordinate.of_t(schedule, t), coordinate.of_t(schedule, t_c)
    log_gaps = jnp.log(jnp.abs(jnp.diff(points)))
    return TimestepParams(log_gaps - log_gaps.mean(), (points_c - points)[1:-1])


def width(schedule: NoiseSchedule, space: str = "lambda") -> float:
    """The length of the whole range in a space; divided by n, the mean gap."""
    return float(jnp.abs(_range(_space(space), schedule, jnp.result_type(float))[1]))


def _uniform(schedule: NoiseSchedule, u: Array) -> Array:
    return schedule.t_max + (schedule.t_min - schedule.t_max) * u


def _quadratic(schedule: NoiseSchedule, u: Array) -> Array:
    return schedule.t_min + (schedule.t_max - schedule.t_min) * (1 - u) ** 2


def _logsnr(schedule: NoiseSchedule, u: Array) -> Array:
    start, width = _range(SPACES["lambda"], schedule, u.dtype)
    return schedule.inverse_lam(start + width * u)


def _edm(schedule: NoiseSchedule, u: Array, rho: float = 7.0) -> Array:
    start, width = _range(SPACES["lambda"], schedule, u.dtype)
    first, last = jnp.exp(-start / rho), jnp.exp(-(start + width) / rho)
    return schedule.inverse_lam(-rho * jnp.log(first + (last - first) * u))


GRIDS = {"uniform": _uniform, "quadratic": _quadratic, "logsnr": _logsnr, "edm": _edm}


def _space(name: str) -> _Space:
    if name not in SPACES:
        raise ValueError(f"space must be one of {sorted(SPACES)}, got {name!r}")
    return SPACES[name]


def _range(space: _Space, schedule: NoiseSchedule, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Where the coordinate starts, and how far it goes (with its sign)."""
    ends = space.of_t(schedule, jnp.asarray([schedule.t_max, schedule.t_min], dtype))
    return ends[0], ends[1] - ends[0]


def _with_ends(t: Array, schedule: NoiseSchedule) -> Array:
    return t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)
