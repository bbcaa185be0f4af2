"""Solver families as tables of coefficients.

Every solver here is linear in the state and in past predictions, with coefficients that depend on the times alone. A
family is thus a pure function `(schedule, t, t_c, *, order, variant, lower_order_final, nfe) -> Table`, which names the
keywords that it uses, and one `lax.scan` (see `ld3_jax.solvers`) runs any table. A new solver is one more function
here and one entry in `solvers.SOLVERS`.

Notation: `h = lam[i+1] - lam[i]` with `lam` the half-log-SNR; primes mark the end of a step; `D` predicts data, `eps`
noise; `phi_1(z) = (e^z - 1) / z`, `phi_{k+1}(z) = (phi_k(z) - 1/k!) / z`. Orders are static NumPy integers: the weights
of an order are computed only for the rows that have it, for a masked 0/0 would spoil gradients.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule

Points = Float[Array, "n_points"]

_TAYLOR_BELOW = 1.0
_TAYLOR_TERMS = 18
_DEIS_NODES = 32
_ADAMS_BASHFORTH = {
    1: np.array([1.0]),
    2: np.array([3.0, -1.0]) / 2,
    3: np.array([23.0, -16.0, 5.0]) / 12,
    4: np.array([55.0, -59.0, 37.0, -9.0]) / 24,
}


class Table(NamedTuple):
    """One row per network call; `k` is the number of predictions remembered, newest first.

    With `history` the last k predictions including this row's, a row does
        base = correct_x * x + correct_base * base + correct_history . history
        x    = predict_base * base + predict_history . history
    The base is the state at the last grid point as known so far; a corrector improves it, a second stage keeps it.
    `correct_history` may have no columns, where the family corrects nothing.
    """

    t: Float[Array, "nfe"]
    correct_x: Float[Array, "nfe"]
    correct_base: Float[Array, "nfe"]
    correct_history: Float[Array, "nfe _"]
    predict_base: Float[Array, "nfe"]
    predict_history: Float[Array, "nfe k"]


def phi(k: int, z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """phi_k(z) of exponential integrators, accurate near 0 in float32.

    phi_k(z) = sum_j z^j / (j + k)!, by that series for |z| < 1 and by recursion elsewhere.

    Args:
        k: index, at least 1.
        z: argument.

    Reference: Hochbruck and Ostermann, Acta Numerica 19 (2010), 209-286.
    """
    near = jnp.abs(z) < _TAYLOR_BELOW
    small, large = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    series = jnp.zeros_like(z)
    for j in reversed(range(_TAYLOR_TERMS)):
        series = series * small + 1 / math.factorial(j + k)
    recursion = jnp.expm1(large) / large
    for j in range(1, k):
        recursion = (recursion - 1 / math.factorial(j)) / large
    return jnp.where(near, series, recursion)


def euler(schedule: NoiseSchedule, t: Points, t_c: Points, **_: Any) -> Table:
    """Euler's method on t: x' = x + (t' - t) dx/dt, with dx/dt = (d log alpha/dt) x - sigma (d lam/dt) eps.

    Reference: Song et al., arXiv:2011.13456, equation 13 (probability flow ODE).
    """
    start, dt = t[:-1], jnp.diff(t)
    rate_alpha, rate_lam = jax.vmap(jax.grad(schedule.log_alpha))(start), jax.vmap(jax.grad(schedule.lam))(start)
    weight = -dt * schedule.sigma(start) * rate_lam
    return _explicit(t_c[:-1], 1 + dt * rate_alpha, weight[:, None])


def heun(schedule: NoiseSchedule, t: Points, t_c: Points, *, nfe: int, **_: Any) -> Table:
    """Heun's method on sigma/alpha, in which the ODE reads d(x/alpha) / d(sigma/alpha) = eps.

    Euler to the end of the step, a second call there, then x' = alpha'/alpha x - sigma' expm1(h) (eps_1 + eps_2) / 2.
    With an odd nfe the last step is Euler's.

    Reference: Karras et al., arXiv:2206.00364, algorithm 1.
    """
    scale, weight = _noise_step(schedule, t[:-1], t[1:])
    stage_1 = _Stage(t_c[:-1], scale, jnp.stack([weight, 0 * weight], -1))
    stage_2 = _Stage(t_c[1:], scale, jnp.stack([weight, weight], -1) / 2)
    return _two_stages(stage_1, stage_2, nfe)


def dpm2(schedule: NoiseSchedule, t: Points, t_c: Points, *, nfe: int, **_: Any) -> Table:
    """DPM-Solver-2: DDIM to the middle of the step in lam, then x' = alpha'/alpha x - sigma' expm1(h) eps_middle.

    The middle call has its own time, whatever t_c is. With an odd nfe the last step is DDIM's.

    Reference: Lu et al., arXiv:2206.00927, algorithm 1 with r_1 = 1/2.
    """
    lam = schedule.lam(t)
    middle = schedule.inverse_lam((lam[:-1] + lam[1:]) / 2)
    half_scale, half_weight = _noise_step(schedule, t[:-1], middle)
    scale, weight = _noise_step(schedule, t[:-1], t[1:])
    if nfe % 2:  # the last step has one call: it goes all the way
        half_scale, half_weight = half_scale.at[-1].set(scale[-1]), half_weight.at[-1].set(weight[-1])
    stage_1 = _Stage(t_c[:-1], half_scale, jnp.stack([half_weight, 0 * half_weight], -1))
    stage_2 = _Stage(middle, scale, jnp.stack([weight, 0 * weight], -1))
    return _two_stages(stage_1, stage_2, nfe)


def dpmpp(schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, lower_order_final: bool, **_: Any) -> Table:
    """DPM-Solver++ 1M (which is DDIM), 2M and 3M.

    x' = sigma'/sigma x + alpha' h (phi_1(-h) D_0 + phi_2(-h) D^(1) + phi_3(-h) D^(2)), with the derivatives D^(k) of D
    in units of the step taken from past predictions; 2M replaces phi_2 by phi_1 / 2.

    Reference: Lu et al., arXiv:2211.01095, algorithm 2 and appendix.
    """
    lam, alpha = schedule.lam(t), schedule.alpha(t)
    orders = _orders(len(t) - 1, order, lower_order_final)
    weights = jnp.zeros((len(orders), order), t.dtype)
    for p, rows in _rows_of(orders):
        h = lam[rows + 1] - lam[rows]
        ratios = [(lam[rows - j] - lam[rows - j - 1]) / h for j in range(p - 1)]
        columns = jnp.stack(_DPMPP_WEIGHTS[p](h, *ratios), -1)
        weights = weights.at[rows, :p].set(alpha[rows + 1, None] * columns)
    return _explicit(t_c[:-1], _ratio(schedule.log_sigma(t)), weights)


def unipc(
    schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, variant: str, lower_order_final: bool, **_: Any
) -> Table:
    """UniPC: a multistep predictor and, at no extra call, a corrector that uses the prediction at the step's end.

    x' = sigma'/sigma x - alpha' expm1(-h) D_0 - alpha' B(h) sum_i rho_i (D_i - D_0) / r_i, where the sum runs over past
    predictions at r_i = (lam_i - lam) / h and, in the corrector, the new one at r = 1. rho solves
    sum_i r_i^k rho_i = (k + 1)! (-h) phi_{k+2}(-h) / B(h), or is 1/2 where there is one node only. B(h) is -h (bh1) or
    expm1(-h) (bh2). The last step has no corrector.

    Reference: Zhao et al., arXiv:2302.04867.
    """
    lam, alpha = schedule.lam(t), schedule.alpha(t)
    scale = _ratio(schedule.log_sigma(t))
    orders = _orders(len(t) - 1, order, lower_order_final)
    predict = jnp.zeros((len(orders), order + 1), t.dtype)
    correct = jnp.zeros_like(predict)
    for p, rows in _rows_of(orders):
        h = lam[rows + 1] - lam[rows]
        past = [(lam[rows - j] - lam[rows]) / h for j in range(1, p)]
        weights = _unipc_weights(h, past, variant)
        predict = predict.at[rows, :p].set(alpha[rows + 1, None] * weights)
        inner, r = rows[rows < len(orders) - 1], [*past, jnp.ones_like(h)]
        weights = _unipc_weights(h, r, variant)[: len(inner)]
        newest_first = jnp.concatenate([weights[:, -1:], weights[:, :-1]], -1)
        correct = correct.at[inner + 1, : p + 1].set(alpha[inner + 1, None] * newest_first)
    first = (np.arange(len(orders)) == 0).astype(t.dtype)
    correct_base = jnp.concatenate([jnp.zeros(1, t.dtype), scale[:-1]])
    return Table(t_c[:-1], jnp.asarray(first), correct_base, correct, scale, predict)


def ipndm(schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, **_: Any) -> Table:
    """iPNDM: DDIM's step with eps extrapolated by Adams-Bashforth weights, as if the steps were even.

    x' = alpha'/alpha x - sigma' expm1(h) sum_j b_j eps_j. The order rises from 1 over the first steps and does not fall
    at the end.

    Reference: Zhang and Chen, arXiv:2204.13902; Liu et al., arXiv:2202.09778.
    """
    scale, weight = _noise_step(schedule, t[:-1], t[1:])
    orders = _orders(len(t) - 1, order, lower_order_final=False)
    padded = [np.pad(_ADAMS_BASHFORTH[p], (0, order - p)) for p in orders]
    return _explicit(t_c[:-1], scale, weight[:, None] * jnp.asarray(np.stack(padded), t.dtype))


def deis(schedule: NoiseSchedule, t: Points, t_c: Points, *, order: int, **_: Any) -> Table:
    """tAB-DEIS: eps as the polynomial in t through past predictions, integrated exactly against the ODE's weight.

    x' = alpha'/alpha x - sum_j C_j eps_j, C_j = alpha' int_lam^lam' L_j(t(l)) e^-l dl with Lagrange's L_j, by
    Gauss-Legendre quadrature in lam (32 nodes: exact to rounding, but for the kinks of `vp_discrete`, 2e-6). The order
    rises from 1 over the first steps.

    Reference: Zhang and Chen, arXiv:2204.13902, equation 15.
    """
    lam, alpha = schedule.lam(t), schedule.alpha(t)
    nodes, node_weights = np.polynomial.legendre.leggauss(_DEIS_NODES)
    nodes, node_weights = jnp.asarray((nodes + 1) / 2, t.dtype), jnp.asarray(node_weights / 2, t.dtype)
    orders = _orders(len(t) - 1, order, lower_order_final=False)
    weights = jnp.zeros((len(orders), order), t.dtype)
    for p, rows in _rows_of(orders):
        h = lam[rows + 1] - lam[rows]
        inside = lam[rows, None] + h[:, None] * nodes[None]
        # sigma' e^(lam' - l) is alpha' e^-l without the overflow that a large lam would bring
        density = (h * alpha[rows + 1] * jnp.exp(-lam[rows + 1]))[:, None] * jnp.exp(lam[rows + 1, None] - inside)
        past = jnp.stack([t[rows - j] for j in range(p)], -1)
        values = density[..., None] * _lagrange(past, schedule.inverse_lam(inside))
        integral = jnp.einsum("q,rqj->rj", node_weights, values, precision="highest")
        weights = weights.at[rows, :p].set(-integral)
    scale = _ratio(schedule.log_alpha(t))
    return _explicit(t_c[:-1], scale, weights)


class _Stage(NamedTuple):
    t: Array
    predict_base: Array
    predict_history: Array


def _explicit(t: Array, predict_base: Array, predict_history: Array) -> Table:
    """A table without corrector: the base is the state itself."""
    one, nothing = jnp.ones_like(t), jnp.zeros((len(t), 0), t.dtype)
    return Table(t, one, jnp.zeros_like(t), nothing, predict_base, predict_history)


def _two_stages(first: _Stage, second: _Stage, nfe: int) -> Table:
    """Rows of both stages in turn, up to nfe of them; the second starts from the first one's base."""
    rows = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])[:nfe], first, second)
    starts = jnp.asarray(np.arange(nfe) % 2 == 0, rows.t.dtype)
    nothing = jnp.zeros((nfe, 0), rows.t.dtype)
    return Table(rows.t, starts, 1 - starts, nothing, rows.predict_base, rows.predict_history)


def _noise_step(schedule: NoiseSchedule, start: Array, end: Array) -> tuple[Array, Array]:
    """The factors of x and eps in DDIM's step for a noise prediction: alpha'/alpha and -sigma' expm1(h)."""
    h = schedule.lam(end) - schedule.lam(start)
    return jnp.exp(schedule.log_alpha(end) - schedule.log_alpha(start)), -schedule.sigma(end) * jnp.expm1(h)


def _ratio(log_values: Array) -> Array:
    """Each value over its predecessor."""
    return jnp.exp(jnp.diff(log_values))


def _orders(n_steps: int, highest: int, lower_order_final: bool) -> np.ndarray:
    """The order of each step: it rises from 1 and, with lower_order_final, falls to 1 at the end."""
    step = np.arange(n_steps)
    orders = np.minimum(step + 1, highest)
    return np.minimum(orders, n_steps - step) if lower_order_final else orders


def _rows_of(orders: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(int(p), np.flatnonzero(orders == p)) for p in np.unique(orders)]


def _dpmpp_1(h: Array) -> tuple[Array]:
    return (h * phi(1, -h),)


def _dpmpp_2(h: Array, r_0: Array) -> tuple[Array, Array]:
    c_1 = h * phi(1, -h)
    slope = c_1 / (2 * r_0)
    return c_1 + slope, -slope


def _dpmpp_3(h: Array, r_0: Array, r_1: Array) -> tuple[Array, Array, Array]:
    c_1, c_2, c_3 = (h * phi(k, -h) for k in (1, 2, 3))
    curvature = (c_2 * r_0 + c_3) / (r_0 + r_1)
    newer, older = (c_2 + curvature) / r_0, curvature / r_1
    return c_1 + newer, -newer - older, older


_DPMPP_WEIGHTS = {1: _dpmpp_1, 2: _dpmpp_2, 3: _dpmpp_3}


def _unipc_weights(h: Array, r: list[Array], variant: str) -> Array:
    """Weights (rows, 1 + nodes) of D at the step's start and at the nodes r, without the factor alpha'."""
    z = -h
    b_h = {"bh1": z, "bh2": jnp.expm1(z)}[variant]
    nodes = jnp.stack(r, -1) if r else jnp.zeros((len(h), 0), h.dtype)
    if len(r) > 1:
        powers = jnp.stack([nodes**k for k in range(len(r))], -2)
        moments = [math.factorial(k + 1) * z * phi(k + 2, z) / b_h for k in range(len(r))]
        rho = jnp.linalg.solve(powers, jnp.stack(moments, -1)[..., None])[..., 0]
    else:
        rho = jnp.full_like(nodes, 0.5)
    at_nodes = -b_h[:, None] * rho / nodes
    at_start = -jnp.expm1(z)[:, None] - at_nodes.sum(-1, keepdims=True)
    return jnp.concatenate([at_start, at_nodes], -1)


def _lagrange(nodes: Array, at: Array) -> Array:
    """Lagrange's polynomials (rows, points, nodes) through nodes (rows, nodes), evaluated at (rows, points)."""
    count = nodes.shape[-1]
    columns = []
    for j in range(count):
        column = jnp.ones_like(at)
        for i in set(range(count)) - {j}:
            column = column * (at - nodes[:, i, None]) / (nodes[:, j] - nodes[:, i])[:, None]
        columns.append(column)
    return jnp.stack(columns, -1)
