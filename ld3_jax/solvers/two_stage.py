"""Solvers with two network calls a step, two rows of the table: Heun's method and DPM-Solver-2."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.numerics import Points, noise_step
from ld3_jax.solvers.table import Table


def heun(schedule: NoiseSchedule, t: Points, t_c: Points, *, nfe: int, **_: Any) -> Table:
    """Heun's method on sigma/alpha, in which the ODE reads d(x/alpha) / d(sigma/alpha) = eps.

    Euler to the end of the step, a second call there, then x' = alpha'/alpha x - sigma' expm1(h) (eps_1 + eps_2) / 2.
    With an odd nfe the last step is Euler's.

    Reference: Karras et al., arXiv:2206.00364, algorithm 1.
    """
    scale, weight = noise_step(schedule, t[:-1], t[1:])
    stage_1 = _Stage(t_c[:-1], scale, jnp.stack([weight, 0 * weight], -1))
    stage_2 = _Stage(t_c[1:], scale, jnp.stack([weight, weight], -1) / 2)
    return _two_stages(stage_1, stage_2, nfe)


def dpm2(schedule: NoiseSchedule, t: Points, t_c: Points, *, nfe: int, **_: Any) -> Table:
    """DPM-Solver-2: DDIM to the middle of the step in lam, then x' = alpha'/alpha x - sigma' expm1(h) eps_middle.

    The middle call has its own time, independent of t_c. With an odd nfe the last step is DDIM's.

    Reference: Lu et al., arXiv:2206.00927, algorithm 1 with r_1 = 1/2.
    """
    lam = schedule.lam(t)
    middle = schedule.inverse_lam((lam[:-1] + lam[1:]) / 2)
    half_scale, half_weight = noise_step(schedule, t[:-1], middle)
    scale, weight = noise_step(schedule, t[:-1], t[1:])
    if nfe % 2:  # the last step has one call and goes to the end
        half_scale, half_weight = half_scale.at[-1].set(scale[-1]), half_weight.at[-1].set(weight[-1])
    stage_1 = _Stage(t_c[:-1], half_scale, jnp.stack([half_weight, 0 * half_weight], -1))
    stage_2 = _Stage(middle, scale, jnp.stack([weight, 0 * weight], -1))
    return _two_stages(stage_1, stage_2, nfe)


class _Stage(NamedTuple):
    t: Float[Array, "n"]
    predict_base: Float[Array, "n"]
    predict_history: Float[Array, "n 2"]


def _two_stages(first: _Stage, second: _Stage, nfe: int) -> Table:
    """Rows of both stages in turn, up to nfe of them; the second starts from the first one's base."""
    rows = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])[:nfe], first, second)
    starts = jnp.asarray(np.arange(nfe) % 2 == 0, rows.t.dtype)
    nothing = jnp.zeros((nfe, 0), rows.t.dtype)
    return Table(rows.t, starts, 1 - starts, nothing, rows.predict_base, rows.predict_history)


FAMILIES = {
    "heun": Family(heun, "noise", orders=(2,), calls_per_step=2),
    "dpm2": Family(dpm2, "noise", orders=(2,), calls_per_step=2),
}
