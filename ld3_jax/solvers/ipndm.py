"""iPNDM, the multistep solver with Adams-Bashforth's fixed weights."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.numerics import Points, noise_step, orders_of_steps
from ld3_jax.solvers.table import Table, explicit

_ADAMS_BASHFORTH = {
    1: np.array([1.0]),
    2: np.array([3.0, -1.0]) / 2,
    3: np.array([23.0, -16.0, 5.0]) / 12,
    4: np.array([55.0, -59.0, 37.0, -9.0]) / 24,
}


def ipndm(schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, **_: Any) -> Table:
    """iPNDM: DDIM's step with eps extrapolated by Adams-Bashforth weights, as if the steps were even.

    x' = alpha'/alpha x - sigma' expm1(h) sum_j b_j eps_j. The order rises from 1 over the first steps and does not fall
    at the end.

    Reference: Zhang and Chen, arXiv:2204.13902; Liu et al., arXiv:2202.09778.
    """
    scale, weight = noise_step(schedule, t[:-1], t[1:])
    orders = orders_of_steps(len(t) - 1, order, lower_order_final=False)
    padded = [np.pad(_ADAMS_BASHFORTH[p], (0, order - p)) for p in orders]
    return explicit(t_c[:-1], scale, weight[:, None] * jnp.asarray(np.stack(padded), t.dtype))


FAMILIES = {"ipndm": Family(ipndm, "noise", orders=(1, 2, 3, 4))}
