"""UniPC, the multistep predictor with a corrector that costs no extra call."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.numerics import Points, orders_of_steps, phi, ratio, rows_by_order
from ld3_jax.solvers.table import Table


def unipc(
    schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, variant: str, lower_order_final: bool, **_: Any
) -> Table:
    """UniPC: a multistep predictor and, at no extra call, a corrector that uses the prediction at the step's end.

    x' = sigma'/sigma x - alpha' expm1(-h) D_0 - alpha' B(h) sum_i rho_i (D_i - D_0) / r_i, where the sum runs over past
    predictions at r_i = (lam_i - lam) / h and, in the corrector, the new one at r = 1. rho solves
    sum_i r_i^k rho_i = (k + 1)! (-h) phi_{k+2}(-h) / B(h), or is 1/2 if there is only one node. B(h) is -h (bh1) or
    expm1(-h) (bh2). The last step has no corrector.

    Reference: Zhao et al., arXiv:2302.04867.
    """
    lam, alpha = schedule.lam(t), schedule.alpha(t)
    scale = ratio(schedule.log_sigma(t))
    orders = orders_of_steps(len(t) - 1, order, lower_order_final)
    predict = jnp.zeros((len(orders), order + 1), t.dtype)
    correct = jnp.zeros_like(predict)
    for p, rows in rows_by_order(orders):
        h = lam[rows + 1] - lam[rows]
        past = [(lam[rows - j] - lam[rows]) / h for j in range(1, p)]
        weights = _weights(h, past, variant)
        predict = predict.at[rows, :p].set(alpha[rows + 1, None] * weights)
        inner, r = rows[rows < len(orders) - 1], [*past, jnp.ones_like(h)]
        weights = _weights(h, r, variant)[: len(inner)]
        newest_first = jnp.concatenate([weights[:, -1:], weights[:, :-1]], -1)
        correct = correct.at[inner + 1, : p + 1].set(alpha[inner + 1, None] * newest_first)
    first = (np.arange(len(orders)) == 0).astype(t.dtype)
    correct_base = jnp.concatenate([jnp.zeros(1, t.dtype), scale[:-1]])
    return Table(t_c[:-1], jnp.asarray(first), correct_base, correct, scale, predict)


def _weights(h: Array, r: list[Array], variant: str) -> Array:
    """Weights (rows, 1 + nodes) of D at the step's start and at the nodes r, without the factor alpha'."""
    z = -h
    b_h = {"bh1": z, "bh2": jnp.expm1(z)}[variant]
    nodes = jnp.stack(r, -1) if r else jnp.zeros((len(h), 0), h.dtype)
    if len(r) > 1:
        rho = _weights_of_moments(r, [math.factorial(k + 1) * z * phi(k + 2, z) / b_h for k in range(len(r))])
    else:
        rho = jnp.full_like(nodes, 0.5)
    at_nodes = -b_h[:, None] * rho / nodes
    at_start = -jnp.expm1(z)[:, None] - at_nodes.sum(-1, keepdims=True)
    return jnp.concatenate([at_start, at_nodes], -1)


def _weights_of_moments(nodes: list[Array], moments: list[Array]) -> Array:
    """The rho of sum_i r_i^k rho_i = moment_k: rho_i is Lagrange's polynomial of node i, with moment_k for r^k.

    In closed form, because on accelerators a general linear solve costs more than the rest of a table.
    """
    rho = []
    for i, r_i in enumerate(nodes):
        polynomial = [jnp.ones_like(r_i)]  # coefficients of r^0, r^1, ...
        for r_j in nodes[:i] + nodes[i + 1 :]:
            terms = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
            polynomial = [(lower - r_j * same) / (r_i - r_j) for lower, same in terms]
        rho.append(sum(c * moment for c, moment in zip(polynomial, moments, strict=True)))
    return jnp.stack(rho, -1)


FAMILIES = {"unipc": Family(unipc, "data", orders=(1, 2, 3), variants=("bh1", "bh2"))}
