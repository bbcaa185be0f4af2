"""LD3's own parametrisation: gaps between the times, and decoupled times for the network.

Reference: Tong et al., arXiv:2405.15506, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from ld3_jax.learning.discretization import Discretization, on_grid
from ld3_jax.learning.parametrisation import Group, Mask, Params, all_of, known_groups
from ld3_jax.ranges import SHIFT, one_of, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver


class _Space(NamedTuple):
    """A coordinate in which gaps and shifts are measured."""

    of_t: Callable[[NoiseSchedule, Array], Array]
    to_t: Callable[[NoiseSchedule, Array], Array]


SPACES = {
    "lambda": _Space(lambda schedule, t: schedule.lam(t), lambda schedule, lam: schedule.inverse_lam(lam)),
    "t": _Space(lambda schedule, t: t, lambda schedule, t: t),
}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Gaps:
    """2n - 1 numbers for n steps.

    In the coordinate of the space, the gaps are softmax(logits), scaled to the whole range, and at the inner points
    t_c = t + clip(shifts, -b, b) with b = max_shift times the smallest gap. No gradient flows through b.

    Attributes:
        space: the coordinate: "lambda" (half-log-SNR) or "t".
        max_shift: bound on the shifts in units of the smallest gap: at most 0.5, which keeps t_c in order.
        frozen: groups that keep their start: "logits" (n,), "shifts" (n - 1,) in units of the space.

    Raises:
        ValueError: if the space or a group is unknown, or max_shift is not in [0, 0.5].

    Reference: Tong et al., arXiv:2405.15506, section 4.
    Differs from the paper: its code takes the bound in lambda space from the raw logits, so equal logits forbid shifts.
    """

    space: str = "lambda"
    max_shift: float = 0.5
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self, {"space": one_of(SPACES), "max_shift": SHIFT})
        known_groups(self.frozen, ("logits", "shifts"))

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers of given times; the logits have mean zero."""
        t, t_c, coefficients = start
        if coefficients is not None:
            raise ValueError("the start has changed coefficients, which gaps and shifts cannot hold")
        if t.shape != t_c.shape or t.shape != (solver.n_steps + 1,):
            raise ValueError(f"a start for {solver} has {solver.n_steps + 1} times, got shapes {t.shape}, {t_c.shape}")
        beyond = (t_c[1:] > t[:-1]) | (t_c[:-1] < t[1:])
        if not isinstance(beyond, Tracer) and beyond.any():
            raise ValueError(f"a start's t_c must lie between the neighbours of its t, got {t_c} for {t}")
        points, points_c = (SPACES[self.space].of_t(schedule, times) for times in (t, t_c))
        log_gaps = jnp.log(jnp.abs(jnp.diff(points)))
        return {"logits": log_gaps - log_gaps.mean(), "shifts": (points_c - points)[1:-1]}

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        return {grid: on_grid(grid, schedule, solver)}

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        """t and t_c, (n + 1,) each, descending, equal and exact at both ends."""
        to_t = SPACES[self.space].to_t
        start, width = self._range(schedule, params["logits"].dtype)
        gaps = jax.nn.softmax(params["logits"])
        points = start + width * jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
        shifts = jnp.pad(self.project(params, schedule)["shifts"], 1)
        return Discretization(
            with_ends(to_t(schedule, points), schedule), with_ends(to_t(schedule, points + shifts), schedule)
        )

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        """Shifts clipped to their bound; beyond it their gradient is zero and they could not return."""
        bound = self.shift_bound(params, schedule)
        return {**params, "shifts": jnp.clip(params["shifts"], -bound, bound)}

    def shift_bound(self, params: Params, schedule: NoiseSchedule) -> Float[Array, ""]:
        """max_shift times the smallest gap. It carries no gradient."""
        _, width = self._range(schedule, params["logits"].dtype)
        return jax.lax.stop_gradient(self.max_shift * jnp.abs(width) * jax.nn.softmax(params["logits"]).min())

    def learned(self, params: Params) -> Mask:
        """All numbers except the frozen groups; a single step has none."""
        return all_of(params, self.frozen if len(params["logits"]) > 1 else tuple(params))

    def groups(self, solver: Solver) -> dict[str, Group]:
        """Logits, which move by at most 1 in a second-order step, and shifts; none for a single step."""
        n = solver.n_steps
        groups = {"logits": Group(0.12 / n, largest=1.0), "shifts": Group(0.05 / n, late=True, floor=1e-5)}
        return {name: group for name, group in groups.items() if n > 1 and name not in self.frozen}

    def _range(self, schedule: NoiseSchedule, dtype: jnp.dtype) -> tuple[Array, Array]:
        """The start of the coordinate, and the (signed) length of its range."""
        ends = SPACES[self.space].of_t(schedule, jnp.asarray([schedule.t_max, schedule.t_min], dtype))
        return ends[0], ends[1] - ends[0]


def with_ends(t: Float[Array, "n_points"], schedule: NoiseSchedule) -> Float[Array, "n_points"]:
    """Times whose first and last are the noise schedule's own, to the last digit."""
    return t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)
