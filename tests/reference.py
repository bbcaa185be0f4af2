"""The solvers as plain loops in NumPy, written from the papers' formulas, to compare `ld3_jax.solvers` with.

A schedule is the pair alpha(t), sigma(t); a model is `model(x, t) -> eps`; `t_c` are the times given to the model.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from scipy.optimize import brentq

# Every solver, order and variant.
CASES = (
    [("euler", 1, "-"), ("ddim", 1, "-"), ("heun", 2, "-"), ("dpm2", 2, "-")]
    + [("dpmpp", order, "-") for order in (1, 2, 3)]
    + [("unipc", order, variant) for order in (1, 2, 3) for variant in ("bh1", "bh2")]
    + [(solver, order, "-") for solver in ("ipndm", "deis") for order in (1, 2, 3, 4)]
)
WITH_LOWER_ORDER_FINAL = ("dpmpp", "unipc")


class Schedule(NamedTuple):
    alpha: Callable
    sigma: Callable

    def lam(self, t):
        return np.log(self.alpha(t) / self.sigma(t))

    def inverse_lam(self, lam, low, high):
        return brentq(lambda t: self.lam(t) - lam, low, high, xtol=1e-16, rtol=1e-15)


def _variance_preserving(alpha):
    return Schedule(alpha, lambda t: np.sqrt(1 - alpha(t) ** 2))


SCHEDULES = {
    "VELinear": Schedule(lambda t: 1 + 0 * t, lambda t: t),
    "VEGeometric": Schedule(lambda t: 1 + 0 * t, lambda t: 0.01 * 5000**t),
    "VPLinear": _variance_preserving(lambda t: np.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)),
    "VPCosine": _variance_preserving(
        lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    ),
    "RectifiedFlow": Schedule(lambda t: 1 - t, lambda t: t),
}


def euler(model, s, x, t, t_c, **_):
    """Song et al., arXiv:2011.13456: dx/dt = f x + (sigma' - f sigma) eps with f = alpha'/alpha."""
    for i in range(len(t) - 1):
        f = _derivative(s.alpha, t[i]) / s.alpha(t[i])
        slope = f * x + (_derivative(s.sigma, t[i]) - f * s.sigma(t[i])) * model(x, t_c[i])
        x = x + (t[i + 1] - t[i]) * slope
    return x


def ddim(model, s, x, t, t_c, **_):
    """Song et al., arXiv:2010.02502: predict the data, infer the noise, mix them again at the next time."""
    for i in range(len(t) - 1):
        data = _data(model, s, x, t_c[i])
        noise = (x - s.alpha(t[i]) * data) / s.sigma(t[i])
        x = s.alpha(t[i + 1]) * data + s.sigma(t[i + 1]) * noise
    return x


def heun(model, s, x, t, t_c, nfe, **_):
    """Karras et al., arXiv:2206.00364, on y = x / alpha and rho = sigma / alpha, where dy / drho = eps."""
    calls, y, rho = 0, x / s.alpha(t[0]), s.sigma(t) / s.alpha(t)
    for i in range(len(t) - 1):
        slope, calls = model(s.alpha(t[i]) * y, t_c[i]), calls + 1
        end = y + (rho[i + 1] - rho[i]) * slope
        if calls < nfe:
            slope, calls = (slope + model(s.alpha(t[i + 1]) * end, t_c[i + 1])) / 2, calls + 1
        y = y + (rho[i + 1] - rho[i]) * slope
    return s.alpha(t[-1]) * y


def dpm2(model, s, x, t, t_c, nfe, **_):
    """Lu et al., arXiv:2206.00927, DPM-Solver-2 with r_1 = 1/2."""
    calls = 0
    for i in range(len(t) - 1):
        eps, calls = model(x, t_c[i]), calls + 1
        if calls < nfe:
            middle = s.inverse_lam((s.lam(t[i]) + s.lam(t[i + 1])) / 2, t[i + 1], t[i])
            eps, calls = model(_noise_step(s, x, eps, t[i], middle), middle), calls + 1
        x = _noise_step(s, x, eps, t[i], t[i + 1])
    return x


def dpmpp(model, s, x, t, t_c, order, lower_order_final, **_):
    """Lu et al., arXiv:2211.01095, DPM-Solver++ 1M, 2M and 3M."""
    lam, past = s.lam(t), []
    for i in range(len(t) - 1):
        past.append(_data(model, s, x, t_c[i]))
        h, p = lam[i + 1] - lam[i], _order(i, len(t) - 1, order, lower_order_final)
        phi_1 = math.expm1(-h)
        phi_2, phi_3 = phi_1 / h + 1, (phi_1 / h + 1) / h - 0.5
        change = -phi_1 * past[-1]
        if p > 1:
            r_0 = (lam[i] - lam[i - 1]) / h
            newer = (past[-1] - past[-2]) / r_0
        if p == 2:
            change = change - phi_1 / 2 * newer
        if p == 3:
            r_1 = (lam[i - 1] - lam[i - 2]) / h
            older = (past[-2] - past[-3]) / r_1
            first, second = newer + r_0 / (r_0 + r_1) * (newer - older), (newer - older) / (r_0 + r_1)
            change = change + phi_2 * first - phi_3 * second
        x = s.sigma(t[i + 1]) / s.sigma(t[i]) * x + s.alpha(t[i + 1]) * change
    return x


def unipc(model, s, x, t, t_c, order, variant, lower_order_final, **_):
    """Zhao et al., arXiv:2302.04867: UniP-p, then UniC-p once the prediction at the step's end is known."""
    lam, past, n = s.lam(t), [_data(model, s, x, t_c[0])], len(t) - 1
    for i in range(n):
        p, h = _order(i, n, order, lower_order_final), lam[i + 1] - lam[i]
        b_h = -h if variant == "bh1" else math.expm1(-h)
        rks = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
        d1s = [(past[-1 - k] - past[-1]) / r for k, r in enumerate(rks, 1)]
        start = s.sigma(t[i + 1]) / s.sigma(t[i]) * x - s.alpha(t[i + 1]) * math.expm1(-h) * past[-1]
        x = start - s.alpha(t[i + 1]) * b_h * _unipc_sum(rks, d1s, h, b_h)
        if i < n - 1:
            past.append(_data(model, s, x, t_c[i + 1]))
            rks, d1s = [*rks, 1.0], [*d1s, past[-1] - past[-2]]
            x = start - s.alpha(t[i + 1]) * b_h * _unipc_sum(rks, d1s, h, b_h)
    return x


def ipndm(model, s, x, t, t_c, order, **_):
    """Zhang and Chen, arXiv:2204.13902: Adams-Bashforth as if the steps were even."""
    past = []
    for i in range(len(t) - 1):
        e = past = [model(x, t_c[i]), *past[:3]]
        eps = {
            1: lambda e: e[0],
            2: lambda e: (3 * e[0] - e[1]) / 2,
            3: lambda e: (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12,
            4: lambda e: (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24,
        }[min(i + 1, order)](e)
        x = _noise_step(s, x, eps, t[i], t[i + 1])
    return x


def deis(model, s, x, t, t_c, order, **_):
    """Zhang and Chen, arXiv:2204.13902, tAB-DEIS: eps is a polynomial in t, integrated against d(sigma/alpha)."""
    past = []
    for i in range(len(t) - 1):
        past = [model(x, t_c[i]), *past[: order - 1]]
        nodes = t[i - len(past) + 1 : i + 1][::-1]
        integral = sum(_integral(s, _lagrange(nodes, j), t[i], t[i + 1]) * eps for j, eps in enumerate(past))
        x = s.alpha(t[i + 1]) * (x / s.alpha(t[i]) + integral)
    return x


def solve(solver, model, schedule, x, t, t_c, order, variant="bh1", lower_order_final=True, nfe=None):
    """Run the solver of this name."""
    nfe = 2 * (len(t) - 1) if nfe is None else nfe
    options = {"order": order, "variant": variant, "lower_order_final": lower_order_final, "nfe": nfe}
    t, t_c = np.asarray(t), np.asarray(t_c)
    return globals()[solver](lambda x, t: np.asarray(model(x, t)), schedule, np.asarray(x), t, t_c, **options)


@jax.jit
def mixture_noise(x, alpha, sigma, mu, var, weight):
    """The exact noise prediction for data from sum_k weight_k N(mu_k, var_k I): eps = -sigma grad log p_t(x)."""
    total = alpha**2 * var + sigma**2
    away = x[:, None] - alpha * mu[None]
    log_p = (jnp.log(weight) - mu.shape[1] / 2 * jnp.log(total))[None] - (away**2).sum(-1) / (2 * total)[None]
    return sigma * (jax.nn.softmax(log_p)[..., None] * away / total[None, :, None]).sum(1)


def gaussian_flow(x_T, std, alpha, sigma, alpha_T, sigma_T):
    """The ODE's solution for data from N(0, std^2 I): the state keeps its size in units of its deviation."""
    return x_T * np.sqrt((alpha**2 * std**2 + sigma**2) / (alpha_T**2 * std**2 + sigma_T**2))


def _derivative(f, t):
    # The complex step has no cancellation, so it is exact to rounding.
    return np.imag(f(t + 1e-30j)) / 1e-30


def _data(model, s, x, t):
    return (x - s.sigma(t) * model(x, t)) / s.alpha(t)


def _noise_step(s, x, eps, start, end):
    h = s.lam(end) - s.lam(start)
    return s.alpha(end) / s.alpha(start) * x - s.sigma(end) * math.expm1(h) * eps


def _order(i, n, order, lower_order_final):
    return min(order, i + 1, n - i) if lower_order_final else min(order, i + 1)


def _unipc_sum(rks, d1s, h, b_h):
    if len(rks) <= 1:
        rhos = [0.5] * len(rks)
    else:
        matrix, b, phi = [], [], math.expm1(-h) / -h
        for k in range(1, len(rks) + 1):
            phi = (phi - 1 / math.factorial(k)) / -h
            matrix.append([r ** (k - 1) for r in rks])
            b.append(math.factorial(k) * -h * phi / b_h)
        rhos = np.linalg.solve(matrix, b)
    return sum(rho * d for rho, d in zip(rhos, d1s, strict=True))


def _lagrange(nodes, j):
    polynomial = Polynomial([1.0])
    for k, node in enumerate(nodes):
        if k != j:
            polynomial *= Polynomial([-node, 1.0]) / (nodes[j] - node)
    return polynomial


def _integral(s, polynomial, start, end):
    # By parts, so that the derivative of sigma / alpha is not needed.
    def rho(t):
        return s.sigma(t) / s.alpha(t)

    inner, _ = quad(lambda t: polynomial.deriv()(t) * rho(t), start, end, epsabs=0, epsrel=1e-13, limit=200)
    return polynomial(end) * rho(end) - polynomial(start) * rho(start) - inner
