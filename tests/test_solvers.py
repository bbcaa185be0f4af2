"""Solvers: parity with loops and with published runs, orders of convergence, gradients, compilation, network calls."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.tree_util import Partial

from ld3_jax import denoisers, schedules, solvers

GOLDEN = np.load(Path(__file__).parent / "golden" / "solvers.npz")
GOLDEN_SOLVERS = {"dpm_solver": "dpm2", "dpm_solver++": "dpmpp", "uni_pc": "unipc"}
SCHEDULES = {
    "ve_edm": schedules.ve_edm(),
    "ve_geometric": schedules.ve_geometric(),
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "vp_discrete": schedules.vp_discrete(GOLDEN["alphas_cumprod"]),
    "rectified_flow": schedules.rectified_flow(),
}
N_STEPS = 5
TWO_CALLS, WITH_LOWER_ORDER_FINAL = ("heun", "dpm2"), ("dpmpp", "unipc")
every_case = pytest.mark.parametrize(("solver", "order", "variant"), reference.CASES)
# One solver with a corrector, one with two stages, one that predicts noise.
three_kinds = pytest.mark.parametrize("solver", ["unipc", "heun", "ipndm"])


@pytest.fixture
def shared_compilation(monkeypatch):
    """Let tables of one shape share one compiled scan, where eager calls would compile each anew."""
    monkeypatch.setattr(solvers, "solve", _compiled_solve)


_compiled_solve = jax.jit(solvers.solve, static_argnames="remat")


@Partial
def network(x, t, cond=None):
    """A stand-in for a network: smooth, not linear, and different at each time."""
    return jnp.tanh(x / (1 + t)) + 0.3 * jnp.cos(5 * t / (1 + t))


def mixture(schedule, mu, var, weight, x, t, cond=None):
    return reference.mixture_noise(x, schedule.alpha(t), schedule.sigma(t), mu, var, weight)


def start(schedule):
    return jnp.asarray(GOLDEN["z"]) * schedule.prior_scale


def grid(schedule, n=N_STEPS):
    """Uneven times, and network times that differ from them."""
    u = np.linspace(0, 1, n + 1)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * (1 - u) ** (1.5 + 0.3 * u)
    t[0], t[-1] = schedule.t_max, schedule.t_min
    t_c = t.copy()
    t_c[1:-1] += 0.2 * np.cos(3 * np.arange(n - 1)) * np.diff(t)[1:]
    return jnp.asarray(t), jnp.asarray(t_c)


def even_lam(schedule, n):
    ends = schedule.lam(jnp.asarray([schedule.t_max, schedule.t_min]))
    t = schedule.inverse_lam(jnp.linspace(ends[0], ends[1], n + 1))
    return t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


def options(solver, order, variant):
    return {"solver": solver, "order": order} | ({} if variant == "-" else {"variant": variant})


def relative_error(x, y):
    return float(np.abs(x - y).max() / np.abs(y).max())


@pytest.mark.parametrize("case", GOLDEN["cases"].tolist())
def test_equals_the_published_code(case, float64, shared_compilation):
    name, solver, order, variant, nfe = case.split("/")
    schedule, solver = SCHEDULES[name], GOLDEN_SOLVERS.get(solver, solver)
    model = Partial(mixture, schedule, *(jnp.asarray(GOLDEN[key]) for key in ("mu", "var", "weight")))
    t, t_c = (jnp.asarray(GOLDEN[f"{case}/{key}"]) for key in ("t", "t_c"))
    choices = options(solver, int(order), variant)
    x_0 = solvers.sample(model, schedule, start(schedule), t, t_c, nfe=int(nfe), **choices)
    assert relative_error(x_0, GOLDEN[f"{case}/x_0"]) < (1e-7 if solver == "unipc" else 1e-10)


@every_case
@pytest.mark.parametrize("name", ["ve_edm", "vp_linear", "vp_cosine", "rectified_flow"])
def test_equals_the_plain_loop(name, solver, order, variant, float64, shared_compilation):
    schedule = SCHEDULES[name]
    t, t_c = grid(schedule)
    calls = (2 * N_STEPS, 2 * N_STEPS - 1) if solver in TWO_CALLS else (N_STEPS,)
    for nfe in calls:
        for final in (True, False) if solver in WITH_LOWER_ORDER_FINAL else (True,):
            choices = options(solver, order, variant) | {"lower_order_final": final, "nfe": nfe}
            x_0 = solvers.sample(network, schedule, start(schedule), t, t_c, **choices)
            plain = reference.solve(
                model=network, schedule=reference.SCHEDULES[name], x=start(schedule), t=t, t_c=t_c, **choices
            )
            assert relative_error(x_0, plain) < 1e-10, choices


def _slope(solver, order, variant, **more):
    schedule, std, errors = SCHEDULES["vp_linear"], 0.5, []
    model = Partial(mixture, schedule, jnp.zeros((1, 6)), jnp.asarray([std**2]), jnp.ones(1))
    ends = jnp.asarray([schedule.t_min, schedule.t_max])
    (alpha, alpha_T), (sigma, sigma_T) = schedule.alpha(ends), schedule.sigma(ends)
    exact = reference.gaussian_flow(start(schedule), std, alpha, sigma, alpha_T, sigma_T)
    for n in (40, 80):
        x_0 = solvers.sample(
            model, schedule, start(schedule), even_lam(schedule, n), **options(solver, order, variant), **more
        )
        errors.append(relative_error(x_0, exact))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("solver", "order", "variant", "expected"),
    [
        ("euler", 1, "-", 1), ("ddim", 1, "-", 1), ("heun", 2, "-", 2), ("dpm2", 2, "-", 2),
        ("dpmpp", 2, "-", 2), ("dpmpp", 3, "-", 2),
        ("unipc", 1, "bh1", 2), ("unipc", 1, "bh2", 2), ("unipc", 2, "bh1", 3), ("unipc", 2, "bh2", 3),
        ("unipc", 3, "bh1", 2.9), ("unipc", 3, "bh2", 2.9),
        ("ipndm", 1, "-", 1), ("ipndm", 2, "-", 2), ("ipndm", 3, "-", 2), ("ipndm", 4, "-", 2),
        ("deis", 1, "-", 1), ("deis", 2, "-", 2), ("deis", 3, "-", 2), ("deis", 4, "-", 2),
    ],
)
def test_error_falls_at_the_solvers_order(solver, order, variant, expected, float64, shared_compilation):
    assert _slope(solver, order, variant) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_3_gains_without_lower_order_final(variant, float64, shared_compilation):
    assert 3.3 < _slope("unipc", 3, variant, lower_order_final=False) < 3.8


@every_case
def test_gradients_equal_finite_differences(solver, order, variant, float64):
    schedule = SCHEDULES["vp_linear"]
    model = Partial(mixture, schedule, *(jnp.asarray(GOLDEN[key]) for key in ("mu", "var", "weight")))
    times = jnp.stack(grid(schedule))
    weights = jnp.cos(jnp.arange(30.0)).reshape(5, 6)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(times):
        choices = options(solver, order, variant)
        return jnp.vdot(weights, solvers.sample(model, schedule, start(schedule), *times, **choices))

    gradient, differences = value_and_gradient(times)[1], np.zeros(times.shape)
    for at in np.ndindex(*times.shape):
        step = 1e-5 * float(times[at])
        up, down = (value_and_gradient(times.at[at].add(sign * step))[0] for sign in (1, -1))
        differences[at] = (up - down) / (2 * step)
    assert np.abs(gradient[1]).max() > 1e-3
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
