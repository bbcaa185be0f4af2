"""Euler's method on the probability flow ODE in t."""

from typing import Any

import jax
import jax.numpy as jnp

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.numerics import Points
from ld3_jax.solvers.table import Table, explicit


def euler(schedule: NoiseSchedule, t: Points, t_c: Points, **_: Any) -> Table:
    """Euler's method on t: x' = x + (t' - t) dx/dt, with dx/dt = (d log alpha/dt) x - sigma (d lam/dt) eps.

    Reference: Song et al., arXiv:2011.13456, equation 13 (probability flow ODE).
    """
    start, dt = t[:-1], jnp.diff(t)
    rate_alpha, rate_lam = jax.vmap(jax.grad(schedule.log_alpha))(start), jax.vmap(jax.grad(schedule.lam))(start)
    weight = -dt * schedule.sigma(start) * rate_lam
    return explicit(t_c[:-1], 1 + dt * rate_alpha, weight[:, None])


FAMILIES = {"euler": Family(euler, "noise", orders=(1,))}
