"""Times for another number of network calls or another start, interpolated between learned ones.

Reference: Align Your Steps (arXiv:2404.14507) interpolates its times.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.gaps import with_ends
from ld3_jax.learning.learned import Learned
from ld3_jax.ranges import CALLS, NUMBER, check, entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver
from ld3_jax.starts import starting_at


@entrance(nfe=CALLS, schedule=instance(NoiseSchedule), t_start=NUMBER.or_none())
def interpolate(
    learned: Sequence[Learned], nfe: int, schedule: NoiseSchedule, *, t_start: float | None = None
) -> Learned:
    """The times for a number of network calls and a start, from times learned for others.

    On hsc32, times learned for 4, 6, 8 and 10 calls and interpolated to 5, 7 and 9 have 1.02, 1.02 and 1.14 times the
    mean squared error of times that were learned for that number.

    Args:
        learned: one or more, for one solver and one model, each for another number of calls or another start.
        nfe: the wanted number of calls.
        schedule: the model's noise schedule.
        t_start: the wanted start, between the starts of the others; full noise is t_max. None: the start of all.

    Returns:
        The one that was learned for `nfe` calls and this start, as it is, or otherwise times interpolated between the
        others: first between numbers of calls, see `between`, then between the two nearest starts.

    Raises:
        ValueError: if they have several solvers or models, two are for one number of calls and one start, they have
            coefficients or times for each part, or the solver cannot take so few calls; if they have several starts and
            none is given, or it does not lie between them.
    """
    each = {f"learned[{i}]": one for i, one in enumerate(learned)}
    check(each, dict.fromkeys(each, instance(Learned)))
    kinds = {(replace(one.solver, nfe=None), one.model.get("digest")) for one in learned}
    if len(kinds) > 1:
        raise ValueError(f"times are interpolated for one solver and one model, got {len(kinds)} kinds")
    by_start: dict[float, list[Learned]] = {}
    for one in learned:
        by_start.setdefault(schedule.t_max if one.t_start is None else one.t_start, []).append(one)
    if t_start is None and len(by_start) > 1:
        raise ValueError(f"they were learned from t = {sorted(by_start)} on: give t_start")
    if t_start is None or t_start in by_start:
        return _of_calls(learned if t_start is None else by_start[t_start], nfe, schedule)
    below = [start for start in by_start if start < t_start]
    above = [start for start in by_start if start > t_start]
    if not below or not above:
        raise ValueError(f"t_start must lie between the learned starts, {sorted(by_start)}, got {t_start}")
    lower, upper = (_of_calls(by_start[at], nfe, schedule) for at in (max(below), min(above)))
    return _between_starts(lower, upper, schedule, t_start)


def _of_calls(learned: Sequence[Learned], nfe: int, schedule: NoiseSchedule) -> Learned:
    """The times for a number of calls and one start."""
    given = [one.solver.nfe for one in learned]
    if len({*given}) < len(given):
        raise ValueError(f"times are interpolated between different numbers of calls, got {given}")
    if same := [one for one in learned if one.solver.nfe == nfe]:
        return same[0]
    if len(learned) < 2:
        raise ValueError(
            f"times for {nfe} network calls are interpolated between those learned for two other numbers or more, got "
            f"those for {given}"
        )
    _check_times_alone(learned, schedule)
    solver = replace(learned[0].solver, nfe=nfe)
    times = between([one.discretization for one in learned], learned[0].range(schedule), solver)
    return _with_times(learned[0], solver, times, schedule)


def _between_starts(lower: Learned, upper: Learned, schedule: NoiseSchedule, t_start: float) -> Learned:
    """Half-log-SNR at the times, linear in the half-log-SNR of the start."""
    _check_times_alone((lower, upper), schedule)
    at, own = lower.range(schedule), starting_at(schedule, t_start)
    lam, first, last = (float(schedule.lam(jnp.asarray(one.t_max))) for one in (own, at, upper.range(schedule)))
    share = (lam - last) / (first - last)

    def read_off(one: Array, other: Array) -> Array:
        return with_ends(own.inverse_lam(share * own.lam(one) + (1 - share) * own.lam(other)), own)

    times = Discretization(read_off(lower.t, upper.t), read_off(lower.t_c, upper.t_c))
    return replace(_with_times(lower, lower.solver, times, schedule), t_start=t_start)


def _check_times_alone(learned: Sequence[Learned], schedule: NoiseSchedule) -> None:
    if any(one.coefficients is not None or one.t.ndim > 1 for one in learned):
        raise ValueError("only times are interpolated: these have coefficients, or times for each part of a state")
    for one in learned:
        one.check_range(schedule)


def _with_times(like: Learned, solver: Solver, times: Discretization, schedule: NoiseSchedule) -> Learned:
    loss = {"loss": like.losses["loss"]} if "loss" in like.losses else {}
    return replace(like, solver=solver, discretization=times, lam=np.asarray(times.lam(schedule)), losses=loss)


def between(known: Sequence[Discretization], schedule: NoiseSchedule, solver: Solver) -> Discretization:
    """The times for a solver's number of steps n, from times for other numbers of steps.

    Half-log-SNR at the times is a function of u = i / m for each m, by monotone cubic interpolation. Between the next
    smaller m and the next larger one, it is linear in 1 / m. For fewer steps than the fewest, or more than the most,
    the nearest function is used. Network times likewise.

    Args:
        known: times for several numbers of steps.
        schedule: the noise schedule.
        solver: a solver of n steps.

    Returns:
        t and t_c, (n + 1,) each, descending, exact at both ends; for a number of steps in `known`, its times.
    """
    n, by_steps = solver.n_steps, {len(one.t) - 1: one for one in known}
    if n in by_steps:
        return by_steps[n]
    fewer = max([m for m in by_steps if m < n] or [min(by_steps)])
    more = min([m for m in by_steps if m > n] or [max(by_steps)])
    share = 1.0 if fewer == more else (1 / n - 1 / more) / (1 / fewer - 1 / more)
    u = jnp.arange(n + 1) / n

    def read_off(*times: Array) -> Array:
        of_fewer, of_more = (_monotone(schedule.lam(t), u) for t in times)
        return with_ends(schedule.inverse_lam(share * of_fewer + (1 - share) * of_more), schedule)

    one, other = by_steps[fewer], by_steps[more]
    return Discretization(read_off(one.t, other.t), read_off(one.t_c, other.t_c))


def _monotone(y: Float[Array, "m_points"], u: Float[Array, "n"]) -> Float[Array, "n"]:
    """The cubic through (i / m, y_i) that rises wherever the increasing y do, at u in [0, 1].

    Reference: Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5 (1984), as in SciPy's PchipInterpolator.
    """
    m = len(y) - 1
    rise = jnp.diff(y)
    first, last = ((3 * rise[i] - rise[j]) / 2 for i, j in ((0, min(1, m - 1)), (m - 1, max(0, m - 2))))
    inner = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
    slope = jnp.concatenate([jnp.maximum(first, 0.0)[None], inner, jnp.maximum(last, 0.0)[None]])
    k = jnp.clip(jnp.floor(u * m).astype(int), 0, m - 1)
    s = u * m - k
    return y[k] + rise[k] * s**2 * (3 - 2 * s) + slope[k] * s * (1 - s) ** 2 - slope[k + 1] * s**2 * (1 - s)
