"""DPM-Solver++, the multistep solvers for a data prediction; order 1 is DDIM."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.numerics import Points, orders_of_steps, phi, ratio, rows_by_order
from ld3_jax.solvers.table import Table, explicit


def dpmpp(schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, lower_order_final: bool, **_: Any) -> Table:
    """DPM-Solver++ 1M (which is DDIM), 2M and 3M.

    x' = sigma'/sigma x + alpha' h (phi_1(-h) D_0 + phi_2(-h) D^(1) + phi_3(-h) D^(2)), with the derivatives D^(k) of D
    in units of the step taken from past predictions; 2M replaces phi_2 by phi_1 / 2.

    Reference: Lu et al., arXiv:2211.01095, algorithm 2 and appendix; DDIM: Song et al., arXiv:2010.02502.
    """
    lam, alpha = schedule.lam(t), schedule.alpha(t)
    orders = orders_of_steps(len(t) - 1, order, lower_order_final)
    weights = jnp.zeros((len(orders), order), t.dtype)
    for p, rows in rows_by_order(orders):
        h = lam[rows + 1] - lam[rows]
        ratios = [(lam[rows - j] - lam[rows - j - 1]) / h for j in range(p - 1)]
        columns = jnp.stack(_WEIGHTS[p](h, *ratios), -1)
        weights = weights.at[rows, :p].set(alpha[rows + 1, None] * columns)
    return explicit(t_c[:-1], ratio(schedule.log_sigma(t)), weights)


def _order_1(h: Array) -> tuple[Array]:
    return (h * phi(1, -h),)


def _order_2(h: Array, r_0: Array) -> tuple[Array, Array]:
    c_1 = h * phi(1, -h)
    slope = c_1 / (2 * r_0)
    return c_1 + slope, -slope


def _order_3(h: Array, r_0: Array, r_1: Array) -> tuple[Array, Array, Array]:
    c_1, c_2, c_3 = (h * phi(k, -h) for k in (1, 2, 3))
    curvature = (c_2 * r_0 + c_3) / (r_0 + r_1)
    newer, older = (c_2 + curvature) / r_0, curvature / r_1
    return c_1 + newer, -newer - older, older


# The predictions' weights, newest first, without the factor alpha'; r_j is the j-th last step in units of this one.
_WEIGHTS = {1: _order_1, 2: _order_2, 3: _order_3}

FAMILIES = {"ddim": Family(dpmpp, "data", orders=(1,)), "dpmpp": Family(dpmpp, "data", orders=(1, 2, 3))}
