"""One curve of times for every number of steps: a hand-made grid on which a learned, increasing warp moves the steps.

The best curve is not quite the same for few steps as for many, so it bends with 1/n.

Reference: BezierFlow (ICLR 2026) learns a schedule as a Bezier curve.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax import timesteps
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.timesteps import TimestepParams

_CENTRE = 6  # steps at which a curve does not bend


def start(degree: int) -> TimestepParams:
    """Parameters under which the curve is the hand-made grid itself.

    Args:
        degree: of the warp's polynomial; the number of its gaps.
    """
    return TimestepParams(jnp.zeros((2, degree)), jnp.zeros((2, degree - 1)))


def read_off(
    params: TimestepParams, schedule: NoiseSchedule, n: int, grid: str = "logsnr", max_shift: float = 0.5
) -> tuple[Float[Array, "{n}+1"], Float[Array, "{n}+1"]]:
    """The curve's times for n steps.

    With the Bernstein polynomials B_j of degree m and grid(u) the hand-made grid as a function of u in [0, 1],
        l = logits_0 + (6 / n - 1) logits_1, and the shifts likewise
        w(u) = sum_j B_j(u) c_j        c = 0 and the cumulative sums of softmax(l), so w increases from 0 to 1
        d(u) = sum_j B_j(u) b_j        b = the shifts, clipped, with 0 at the ends
        t_i = grid(w(i / n))           t_c,i = grid(w((i + d(i / n)) / n))

    Args:
        params: logits (2, m) and shifts (2, m - 1), these in steps.
        schedule: the noise schedule.
        n: number of steps, at least 1.
        grid: the hand-made grid that is warped, a name in `timesteps.GRIDS`.
        max_shift: bound on the shifts, in steps; at most 0.5 keeps t_c in order.

    Returns:
        t and t_c, (n + 1,) each, descending, equal and exact at both ends.
    """
    bend = jnp.asarray([1.0, _CENTRE / n - 1.0], params.logits.dtype)
    gaps = jax.nn.softmax(bend @ params.logits)
    control = jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
    shifts = jnp.pad(jnp.clip(bend @ params.shifts, -max_shift, max_shift), 1)
    u = jnp.arange(1, n, dtype=gaps.dtype) / n
    u_c = u + _bernstein(u, len(gaps)) @ shifts / n
    t, t_c = (timesteps.GRIDS[grid](schedule, _bernstein(u, len(gaps)) @ control) for u in (u, u_c))
    first, last = (jnp.full(1, end, t.dtype) for end in (schedule.t_max, schedule.t_min))
    return jnp.concatenate([first, t, last]), jnp.concatenate([first, t_c, last])


def _bernstein(u: Float[Array, "n"], degree: int) -> Float[Array, "n {degree}+1"]:
    """The Bernstein polynomials at u, which lies strictly between 0 and 1."""
    j = jnp.arange(degree + 1, dtype=u.dtype)
    binomials = jnp.asarray([math.comb(degree, k) for k in range(degree + 1)], u.dtype)
    return binomials[None] * u[:, None] ** j[None] * (1 - u[:, None]) ** (degree - j[None])
