"""One curve of times for every number of steps: a hand-made grid on which a learned, increasing warp moves the steps.

The best curve is not quite the same for few steps as for many, so it bends with 1/n.

Reference: BezierFlow (ICLR 2026) learns a discretisation as a Bezier curve.
"""

import math
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
from ld3_jax.learning.parametrisation import Mask, Params, all_of, known_groups
from ld3_jax.ranges import COUNT, SHIFT, check
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

_CENTRE = 6  # steps at which a curve does not bend
_DEGREE = COUNT._replace(most=128)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Curve:
    """A curve that the times of any number of steps n are read off.

    With the Bernstein polynomials B_j of degree m and grid(u) a hand-made grid as a function of u in [0, 1],
        l = logits_0 + (6 / n - 1) logits_1, and the shifts likewise
        w(u) = sum_j B_j(u) c_j        c = 0 and the cumulative sums of softmax(l), so w increases from 0 to 1
        d(u) = sum_j B_j(u) b_j        b = the shifts, clipped, with 0 at the ends
        t_i = grid(w(i / n))           t_c,i = grid(w((i + d(i / n)) / n))
    The numbers are logits (2, m), shifts (2, m - 1) in steps, and grid: 1 for the grid that is warped and 0 for the
    others of GRIDS, which is not learned.

    Attributes:
        nfes: the numbers of network calls that the curve is learned for together.
        degree: m, at most 128: the binomials of more are beyond float32.
        max_shift: bound on the shifts, in steps: at most 0.5, which keeps t_c in order.
        frozen: groups that stay as they start, "logits" or "shifts".

    Raises:
        ValueError: if nfes is empty, a number is out of its range or a group is unknown.
    """

    nfes: tuple[int, ...] = (4, 6, 8, 10)
    degree: int = 32
    max_shift: float = 0.5
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.nfes:
            raise ValueError("a curve needs numbers of network calls to be learned for, got nfes = ()")
        check(vars(self), {"degree": _DEGREE, "max_shift": SHIFT})
        each = {f"nfes[{i}]": nfe for i, nfe in enumerate(self.nfes)}
        check(each, dict.fromkeys(each, COUNT))
        known_groups(self.frozen, ("logits", "shifts"))

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers with which the curve is the hand-made grid `start`."""
        plain = start.coefficients is None and start.t.shape == start.t_c.shape == (solver.n_steps + 1,)
        hand_made = [np.asarray(grids.grid(name, schedule, solver.n_steps)) for name in GRIDS]
        same = [plain and np.allclose(start[:2], times[None], rtol=1e-4) for times in hand_made]
        if not any(same):
            raise ValueError(
                f"a curve starts at a hand-made grid, one of {sorted(GRIDS)}; these times are none of them"
            )
        return _flat(list(GRIDS)[same.index(True)], self.degree)

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """The grid."""
        return {grid: on_grid(grid, schedule, solver)}

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """The curve's times for the solver's number of steps: equal and exact at both ends."""
        n, logits = solver.n_steps, params["logits"]
        bend = jnp.asarray([1.0, _CENTRE / n - 1.0], logits.dtype)
        gaps = jax.nn.softmax(bend @ logits)
        control = jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
        shifts = jnp.pad(jnp.clip(bend @ params["shifts"], -self.max_shift, self.max_shift), 1)
        u = jnp.arange(1, n, dtype=gaps.dtype) / n
        u_c = u + _bernstein(u, len(gaps)) @ shifts / n

        def read_off(u: Array) -> Array:
            warped = _bernstein(u, len(gaps)) @ control
            on_grids = jnp.stack([of_u(schedule, warped) for of_u in GRIDS.values()])
            inner = (params["grid"][:, None] * on_grids).sum(0)
            first, last = (jnp.full(1, end, inner.dtype) for end in (schedule.t_max, schedule.t_min))
            return jnp.concatenate([first, inner, last])

        return Discretization(read_off(u), read_off(u_c))

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """Shifts clipped to their bound."""
        return {**params, "shifts": jnp.clip(params["shifts"], -self.max_shift, self.max_shift)}

    def learned(self, params: Params) -> Mask:
        """All numbers but the grid and the frozen groups."""
        return all_of(params, ("grid", *self.frozen))

    def solvers(self, solver: Solver) -> tuple[Solver, ...]:
        """The solver with each of the numbers of network calls."""
        return tuple(replace(solver, nfe=nfe) for nfe in self.nfes)

    def rates(self, solver: Solver) -> dict[str, float]:
        """Learning rates for Adam: 0.08 for the logits, 0.01 for the shifts."""
        return {name: rate for name, rate in {"logits": 0.08, "shifts": 0.01}.items() if name not in self.frozen}


def to_record(curve: Curve, params: Params) -> dict[str, Any]:
    """A learned curve as JSON takes it."""
    lists = {name: np.asarray(params[name]).tolist() for name in ("logits", "shifts")}
    name = list(GRIDS)[int(np.argmax(params["grid"]))]
    return lists | {"grid": name, "max_shift": curve.max_shift, "nfes": list(curve.nfes)}


def from_record(record: Any) -> tuple[Curve, Params]:
    """A learned curve from what `to_record` made.

    Raises:
        ValueError: if something is missing, of another type or shape, or not finite; it names what.
    """
    given = record if isinstance(record, dict) else {}
    logits, shifts, max_shift, nfes = (numbers(given.get(name)) for name in ("logits", "shifts", "max_shift", "nfes"))
    degree = (logits.shape or (0,))[-1]
    sound = {
        "logits": degree > 0 and logits.shape == (2, degree) and np.isfinite(logits).all(),
        "shifts": shifts.shape == (2, degree - 1) and np.isfinite(shifts).all(),
        "grid": given.get("grid") in list(GRIDS),
        "max_shift": max_shift.shape == () and not SHIFT.lacks(float(max_shift)),
        "nfes": nfes.ndim == 1 and nfes.size > 0 and (nfes >= 1).all() and (nfes % 1 == 0).all(),
    }
    if wrong := [name for name in sound if not sound[name]]:
        raise ValueError(
            f"a curve has 2 x m finite logits, 2 x (m - 1) finite shifts, a grid of {sorted(GRIDS)}, a max_shift "
            f"from 0 to {SHIFT.most} and a list of nfes; wrong here: {wrong}"
        )
    curve = Curve(tuple(map(int, nfes)), degree, float(max_shift))
    return curve, _flat(given["grid"], degree) | {"logits": jnp.asarray(logits), "shifts": jnp.asarray(shifts)}


def _flat(name: str, degree: int) -> Params:
    """The numbers of a curve that warps nothing."""
    one_hot = jnp.asarray(np.array(list(GRIDS)) == name, jnp.result_type(float))
    return {"grid": one_hot, "logits": jnp.zeros((2, degree)), "shifts": jnp.zeros((2, degree - 1))}


def _bernstein(u: Float[Array, "n"], degree: int) -> Float[Array, "n {degree}+1"]:
    """The Bernstein polynomials at u, which lies strictly between 0 and 1."""
    j = jnp.arange(degree + 1, dtype=u.dtype)
    binomials = jnp.asarray([math.comb(degree, k) for k in range(degree + 1)], u.dtype)
    return binomials[None] * u[:, None] ** j[None] * (1 - u[:, None]) ** (degree - j[None])
