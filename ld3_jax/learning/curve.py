"""Times for several numbers of network calls, learned together, and for others by interpolation between them.

Reference: Align Your Steps (arXiv:2404.14507) interpolates its times; BezierFlow (ICLR 2026) learns one curve for all
numbers of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax import grids
from ld3_jax.disk import numbers
from ld3_jax.grids import GRIDS
from ld3_jax.learning.discretization import Discretization, on_grid
from ld3_jax.learning.gaps import Gaps, with_ends
from ld3_jax.learning.parametrisation import Mask, Params
from ld3_jax.ranges import CALLS, check, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

_GAPS = Gaps()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Curve:
    """Its own times for each of several numbers of network calls; `between` reads others off.

    Each group of the numbers is a tuple with the group of every number of calls.

    Attributes:
        nfes: the numbers of network calls that are learned together, ascending.
        times: the parametrisation of each.

    Raises:
        ValueError: if nfes is empty, does not ascend, or holds what is no number of calls.
    """

    nfes: tuple[int, ...] = (4, 6, 8, 10)
    times: Gaps = _GAPS

    def __post_init__(self) -> None:
        if not self.nfes:
            raise ValueError("a curve needs numbers of network calls to be learned for, got nfes = ()")
        check(vars(self), {"nfes": instance(tuple), "times": instance(Gaps)})
        each = {f"nfes[{i}]": nfe for i, nfe in enumerate(self.nfes)}
        object.__setattr__(self, "nfes", tuple(check(each, dict.fromkeys(each, CALLS)).values()))
        if list(self.nfes) != sorted(set(self.nfes)):
            raise ValueError(f"nfes must ascend, got {self.nfes}")

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers with which all times are those of the hand-made grid `start`."""
        plain = start.coefficients is None and start.t.shape == start.t_c.shape == (solver.n_steps + 1,)
        hand_made = [np.asarray(grids.grid(name, schedule, solver.n_steps)) for name in GRIDS]
        same = [plain and np.allclose(start[:2], times[None], rtol=1e-4) for times in hand_made]
        if not any(same):
            raise ValueError(
                f"a curve starts at a hand-made grid, one of {sorted(GRIDS)}; these times are none of them"
            )
        name = list(GRIDS)[same.index(True)]
        return _joined([self.times.init(on_grid(name, schedule, one), schedule, one) for one in self.solvers(solver)])

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """The grid."""
        return {grid: on_grid(grid, schedule, solver)}

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """The times for the solver's number of calls: its own ones, or between those of others."""
        each = zip(_split(params), self.solvers(solver), strict=True)
        return between([self.times.discretization(numbers, schedule, one) for numbers, one in each], schedule, solver)

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """The projection of each."""
        return _joined([self.times.project(numbers, schedule) for numbers in _split(params)])

    def learned(self, params: Params) -> Mask:
        """Those of each."""
        return _joined([self.times.learned(numbers) for numbers in _split(params)])

    def solvers(self, solver: Solver) -> tuple[Solver, ...]:
        """The solver with each of the numbers of network calls."""
        return tuple(replace(solver, nfe=nfe) for nfe in self.nfes)

    def rates(self, solver: Solver) -> dict[str, float]:
        """Those of the solver's own number of calls."""
        return self.times.rates(solver)


def between(found: Sequence[Discretization], schedule: NoiseSchedule, solver: Solver) -> Discretization:
    """The times for a solver's number of steps n, from those for other numbers of steps.

    Half-log-SNR at the times is a function of u = i / m for each m, by monotone cubic interpolation. Between the next
    smaller m and the next larger one it is linear in 1 / m. Fewer steps than the fewest, and more than the most, are
    read off these. Network times likewise.

    Args:
        found: times for several numbers of steps.
        schedule: the noise schedule.
        solver: of n steps.

    Returns:
        t and t_c, (n + 1,) each, descending, exact at both ends; for a number of steps in `found`, what is there.
    """
    n, those = solver.n_steps, {len(one.t) - 1: one for one in found}
    if n in those:
        return those[n]
    fewer, more = max([m for m in those if m < n] or [min(those)]), min([m for m in those if m > n] or [max(those)])
    share = 1.0 if fewer == more else (1 / n - 1 / more) / (1 / fewer - 1 / more)
    u = jnp.arange(n + 1) / n

    def read_off(*times: Array) -> Array:
        of_fewer, of_more = (_monotone(schedule.lam(t), u) for t in times)
        return with_ends(schedule.inverse_lam(share * of_fewer + (1 - share) * of_more), schedule)

    return Discretization(read_off(those[fewer].t, those[more].t), read_off(those[fewer].t_c, those[more].t_c))


def to_record(found: Sequence[Discretization]) -> dict[str, Any]:
    """Times for several numbers of steps as JSON takes them."""
    return {name: [np.asarray(getattr(one, name)).tolist() for one in found] for name in ("t", "t_c")}


def from_record(record: Any, ends: tuple[float, float]) -> tuple[Discretization, ...]:
    """Times for several numbers of steps from what `to_record` made.

    Args:
        record: what was read.
        ends: the first and the last of all times.

    Raises:
        ValueError: if something is missing, of another type or shape, or no times; it names what.
    """
    given = record if isinstance(record, dict) else {}
    t, t_c = (list(map(numbers, rows)) if isinstance(rows := given.get(name), list) else [] for name in ("t", "t_c"))
    sound = {
        "t": bool(t) and all(_are_times(one, ends) and (np.diff(one) < 0).all() for one in t),
        "t_c": [one.shape for one in t_c] == [one.shape for one in t] and all(_are_times(one, ends) for one in t_c),
    }
    if wrong := [name for name in sound if not sound[name]]:
        raise ValueError(
            f"a curve has lists t and t_c of times for each number of steps, descending from {ends[0]:g} to "
            f"{ends[1]:g}; wrong here: {wrong}"
        )
    return tuple(Discretization(jnp.asarray(one), jnp.asarray(other)) for one, other in zip(t, t_c, strict=True))


def _are_times(array: np.ndarray, ends: tuple[float, float]) -> bool:
    sound = array.ndim == 1 and len(array) > 1 and np.isfinite(array).all()
    return bool(sound and np.allclose(array[[0, -1]], ends, rtol=1e-6))


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


def _joined(each: list[Any]) -> Any:
    """The numbers for each number of calls, or booleans like them, as tuples by group."""
    return {name: tuple(one[name] for one in each) for name in each[0]}


def _split(params: Params) -> list[Params]:
    return [dict(zip(params, groups, strict=True)) for groups in zip(*params.values(), strict=True)]
