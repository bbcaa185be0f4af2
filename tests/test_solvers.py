"""Solvers: parity with loops and with published runs, orders of convergence, gradients, compilation, network calls."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import reference
from jax.tree_util import Partial

from ld3_jax import grids, schedules, solvers
from ld3_jax.poses import PoseNoise
from ld3_jax.solvers import Solver

GOLDEN = np.load(Path(__file__).parent / "golden" / "solvers.npz")
GOLDEN_SOLVERS = {"dpm_solver": "dpm2", "dpm_solver++": "dpmpp", "uni_pc": "unipc"}
GOLDEN_SCHEDULES = {
    "ve_edm": "VELinear",
    "ve_geometric": "VEGeometric",
    "vp_linear": "VPLinear",
    "vp_cosine": "VPCosine",
    "vp_discrete": "VPDiscrete",
    "rectified_flow": "RectifiedFlow",
}
SCHEDULES = {
    "VELinear": schedules.VELinear(),
    "VEGeometric": schedules.VEGeometric(),
    "VPLinear": schedules.VPLinear(),
    "VPCosine": schedules.VPCosine(),
    "VPDiscrete": schedules.VPDiscrete(GOLDEN["alphas_cumprod"]),
    "RectifiedFlow": schedules.RectifiedFlow(),
}
# With 6 steps the orders are 1 2 3 3 2 1: as many steps of each, so that they share compiled operations.
N_STEPS = 6
TWO_CALLS = ("heun", "dpm2")
every_case = pytest.mark.parametrize(("solver", "order", "variant"), reference.CASES)
# Tables of the highest order begin, and some end, with rows of all lower orders.
HIGHEST_ORDERS = {(solver, variant): order for solver, order, variant in reference.CASES}
HIGHEST_ORDERS = [(solver, order, variant) for (solver, variant), order in HIGHEST_ORDERS.items()]
# One solver with a corrector, one with two stages, one that predicts noise.
three_kinds = pytest.mark.parametrize(("solver", "order"), [("unipc", 2), ("heun", 2), ("ipndm", 2)])


@pytest.fixture
def shared_compilation(monkeypatch):
    """Let tables of one shape share one compiled scan, where eager calls would compile each anew."""
    monkeypatch.setattr("ld3_jax.solvers.solver.solve", _compiled_solve)


_compiled_solve = jax.jit(solvers.solve, static_argnames=("remat", "retract"))


@Partial
def network(x, t, cond=None):
    """A stand-in for a network: smooth, not linear, and different at each time."""
    return jnp.tanh(x / (1 + t)) + 0.3 * jnp.cos(5 * t / (1 + t))


def mixture(schedule, mu, var, weight, x, t, cond=None):
    return reference.mixture_noise(x, schedule.alpha(t), schedule.sigma(t), mu, var, weight)


def gaussian(schedule, std, x, t, cond=None):
    """The exact noise prediction for data from N(0, std^2 I)."""
    return schedule.sigma(t) * x / (schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2)


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


def sample(*args, solver, cond=None, **choices):
    return solvers.sample(*args, solver=Solver(solver, **choices), cond=cond)


def make_table(*args, solver, **choices):
    return solvers.make_table(*args, solver=Solver(solver, **choices))


def relative_error(x, y):
    return float(np.abs(x - y).max() / np.abs(y).max())


@pytest.mark.parametrize("case", GOLDEN["cases"].tolist())
def test_equals_the_published_code(case, float64, shared_compilation):
    name, solver, order, variant, nfe = case.split("/")
    schedule, solver = SCHEDULES[GOLDEN_SCHEDULES[name]], GOLDEN_SOLVERS.get(solver, solver)
    model = Partial(mixture, schedule, *(jnp.asarray(GOLDEN[key]) for key in ("mu", "var", "weight")))
    t, t_c = (jnp.asarray(GOLDEN[f"{case}/{key}"]) for key in ("t", "t_c"))
    choices = options(solver, int(order), variant)
    x_0 = sample(model, schedule, start(schedule), t, t_c, nfe=int(nfe), **choices)
    assert relative_error(x_0, GOLDEN[f"{case}/x_0"]) < (1e-7 if solver == "unipc" else 1e-10)


@every_case
def test_equals_the_plain_loop(solver, order, variant, float64, shared_compilation):
    schedule = SCHEDULES["VPLinear"]
    t, t_c = grid(schedule)
    calls = (2 * N_STEPS, 2 * N_STEPS - 1) if solver in TWO_CALLS else (N_STEPS,)
    for nfe in calls:
        for final in (True, False) if solver in reference.WITH_LOWER_ORDER_FINAL else (True,):
            choices = options(solver, order, variant) | {"lower_order_final": final, "nfe": nfe}
            x_0 = sample(network, schedule, start(schedule), t, t_c, **choices)
            plain = reference.solve(
                model=network, schedule=reference.SCHEDULES["VPLinear"], x=start(schedule), t=t, t_c=t_c, **choices
            )
            assert relative_error(x_0, plain) < 1e-10, choices


def _slope(solver, order, variant, **more):
    schedule, std, errors = SCHEDULES["VPLinear"], 0.5, []
    model = Partial(gaussian, schedule, jnp.float64(std))
    ends = jnp.asarray([schedule.t_min, schedule.t_max])
    (alpha, alpha_T), (sigma, sigma_T) = schedule.alpha(ends), schedule.sigma(ends)
    exact = reference.gaussian_flow(start(schedule), std, alpha, sigma, alpha_T, sigma_T)
    compiled = jax.jit(partial(sample, **options(solver, order, variant), **more))
    for n in (40, 80):
        x_0 = compiled(model, schedule, start(schedule), even_lam(schedule, n))
        errors.append(relative_error(x_0, exact))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("solver", "order", "variant", "expected"),
    [
        ("euler", 1, "-", 1),
        ("ddim", 1, "-", 1),
        ("heun", 2, "-", 2),
        ("dpm2", 2, "-", 2),
        ("dpmpp", 2, "-", 2),
        # The low order of the first steps holds DPM-Solver++ and iPNDM at 2.
        ("dpmpp", 3, "-", 2.1),
        ("unipc", 1, "bh1", 2.1),
        ("unipc", 1, "bh2", 2),
        ("unipc", 2, "bh1", 3),
        ("unipc", 2, "bh2", 3),
        ("unipc", 3, "bh1", 2.9),
        ("unipc", 3, "bh2", 2.9),
        ("ipndm", 1, "-", 1),
        ("ipndm", 2, "-", 2),
        ("ipndm", 3, "-", 2),
        ("ipndm", 4, "-", 2),
        ("deis", 1, "-", 1),
        ("deis", 2, "-", 1.9),
        ("deis", 3, "-", 2.8),
        ("deis", 4, "-", 3.75),
    ],
)
def test_error_falls_at_the_solvers_order(solver, order, variant, expected, float64, shared_compilation):
    assert _slope(solver, order, variant) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_3_gains_without_lower_order_final(variant, float64, shared_compilation):
    assert 3.2 < _slope("unipc", 3, variant, lower_order_final=False) < 3.8


@pytest.mark.parametrize(("solver", "order", "variant"), HIGHEST_ORDERS)
def test_gradients_equal_finite_differences(solver, order, variant, float64):
    schedule = SCHEDULES["VPLinear"]
    times = jnp.stack(grid(schedule))
    weights = jnp.cos(jnp.arange(30.0)).reshape(5, 6)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(times):
        choices = options(solver, order, variant)
        return jnp.vdot(weights, sample(network, schedule, start(schedule), *times, **choices))

    gradient, differences = value_and_gradient(times)[1], np.zeros(times.shape)
    for at in np.ndindex(*times.shape):
        step = 1e-4 * float(times[at])
        values = [value_and_gradient(times.at[at].add(k * step))[0] for k in (-2, -1, 1, 2)]
        differences[at] = np.dot([1, -8, 8, -1], values) / (12 * step)
    assert np.abs(gradient[1]).max() > 1e-3
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())


@three_kinds
def test_jit_vmap_and_remat_change_nothing(solver, order, float64):
    table = make_table(SCHEDULES["VPLinear"], *grid(SCHEDULES["VPLinear"]), solver=solver, order=order)
    x_T = start(SCHEDULES["VPLinear"])

    def loss(x, remat):
        return jnp.sum(jnp.sin(solvers.solve(network, table, x, remat=remat)))

    eager = solvers.solve(network, table, x_T)
    np.testing.assert_allclose(_compiled_solve(network, table, x_T), eager, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda x: solvers.solve(network, table, x))(x_T), eager, rtol=1e-12)
    with_remat, without = (jax.grad(loss)(x_T, remat) for remat in (True, False))
    np.testing.assert_allclose(with_remat, without, rtol=1e-12)


@three_kinds
def test_remat_keeps_no_activations(solver, order, float64):
    table = make_table(SCHEDULES["VPLinear"], *grid(SCHEDULES["VPLinear"]), solver=solver, order=order)

    def wide(x, t, cond):
        return jnp.tanh(jnp.tanh(x[:, None] * jnp.ones((1, 1000, 1)) + t)).mean(1)

    def kept(remat):
        _, pullback = jax.vjp(lambda x: solvers.solve(wide, table, x, remat=remat), jnp.ones((5, 6)))
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept(remat=True) < 5000 < kept(remat=False)


@pytest.mark.parametrize("differentiate", [False, True])
@three_kinds
def test_the_network_is_traced_once_and_compiled_once(solver, order, differentiate):
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def counted(weights, x, t, cond):
        return jnp.tanh(weights * x)

    def run(weights, x, t):
        model = Partial(counted, weights)
        return sample(model, SCHEDULES["VPLinear"], x, t, solver=solver, order=order).sum()

    compiled = jax.jit(jax.grad(run, argnums=2) if differentiate else run)
    t = grid(SCHEDULES["VPLinear"])[0].astype(jnp.float32)
    first = compiled(jnp.float32(0.5), jnp.ones((5, 6)), t)
    second = compiled(jnp.float32(0.7), 2 * jnp.ones((5, 6)), t.at[2].multiply(0.9))
    assert compiled._cache_size() == 1
    assert np.abs(first - second).max() > 1e-3


@every_case
def test_the_network_is_called_nfe_times_at_the_tables_times(solver, order, variant, float64, shared_compilation):
    schedule = SCHEDULES["VPLinear"]
    t, t_c = grid(schedule)
    for nfe in (2 * N_STEPS, 2 * N_STEPS - 1) if solver in TWO_CALLS else (N_STEPS,):
        choices = options(solver, order, variant) | {"nfe": nfe}
        _calls.clear()
        sample(reporting_network, schedule, start(schedule), t, t_c, **choices).block_until_ready()
        jax.effects_barrier()
        assert len(_calls) == nfe
        # A callback runs in a thread of its own, which may round to float32.
        np.testing.assert_allclose(_calls, make_table(schedule, t, t_c, **choices).t, rtol=1e-6)


_calls = []


@Partial
def reporting_network(x, t, cond=None):
    jax.debug.callback(lambda t: _calls.append(float(t)), t, ordered=True)
    return jnp.tanh(x)


# On the widest range all, and where times are interpolated the most intricate two.
@pytest.mark.parametrize(
    ("name", "solver"),
    [*(("VELinear", solver) for solver in sorted(solvers.SOLVERS)), ("VPDiscrete", "unipc"), ("VPDiscrete", "deis")],
)
def test_samples_and_gradients_are_finite_in_float32(name, solver):
    schedule = SCHEDULES[name]
    t = even_lam(schedule, N_STEPS)
    x_T = start(schedule).astype(jnp.float32)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def value_and_gradients(t, t_c):
        return solvers.solve(network, make_table(schedule, t, t_c, solver=solver), x_T, remat=False).sum()

    value, gradients = value_and_gradients(t, t)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@three_kinds
def test_a_pytree_of_states_is_integrated_leaf_by_leaf(solver, order, float64):
    schedule = SCHEDULES["VPLinear"]
    t, t_c = grid(schedule)
    x_T = {"a": start(schedule), "b": 0.5 * start(schedule)[:, :3]}

    def both(x, t, cond):
        return {"a": network(x["a"], t), "b": jnp.cos(x["b"])}

    x_0 = sample(both, schedule, x_T, t, t_c, solver=solver, order=order)
    for leaf, model in [("a", network), ("b", lambda x, t, cond: jnp.cos(x))]:
        alone = sample(model, schedule, x_T[leaf], t, t_c, solver=solver, order=order)
        np.testing.assert_allclose(x_0[leaf], alone, rtol=1e-12)


@three_kinds
def test_cond_reaches_the_network(solver, order, float64):
    schedule = SCHEDULES["VPLinear"]
    t, _ = grid(schedule)

    def conditional(x, t, cond):
        return jnp.tanh(x + cond["shift"])

    cond = {"shift": jnp.arange(5.0)[:, None] * jnp.ones((1, 6))}
    x_0 = sample(conditional, schedule, start(schedule), t, solver=solver, order=order, cond=cond)
    fixed = sample(lambda x, t, _: conditional(x, t, cond), schedule, start(schedule), t, solver=solver, order=order)
    np.testing.assert_array_equal(x_0, fixed)


def rotate(point, angle):
    """Move along the unit circle, the exponential map of its points."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos * point[:, 0] - sin * point[:, 1], sin * point[:, 0] + cos * point[:, 1]], -1)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm2", 2), ("ipndm", 3), ("deis", 4)])
def test_retraction_integrates_on_the_circle_as_its_angle_does_on_the_line(solver, order, float64):
    schedule = schedules.VELinear(sigma_min=0.01, sigma_max=3.0)
    angle = jnp.linspace(-3.0, 3.0, 7)
    table = make_table(schedule, grid(schedule)[0], solver=solver, order=order)

    def on_circle(point, t, cond):
        return jnp.tanh(point[:, 0] + 2 * point[:, 1]) + 0.1 * t

    def on_line(angle, t, cond):
        return on_circle(jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), t, cond)

    point = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    point = solvers.solve(on_circle, table, point, retract=rotate, update_like=angle)
    angle = solvers.solve(on_line, table, angle)
    np.testing.assert_allclose(jnp.linalg.norm(point, axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(point, jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("n_points", "choices", "message"),
    [
        (6, {"solver": "rk4"}, "solver must be one of .*'ddim'.*got 'rk4'"),
        (6, {"solver": "ddim", "order": 2}, r"'ddim' has the orders \[1\], got 2"),
        (6, {"solver": "dpmpp", "order": 4}, r"'dpmpp' has the orders \[1, 2, 3\], got 4"),
        (6, {"solver": "unipc", "variant": "bh3"}, r"'unipc' has the variants \['bh1', 'bh2'\], got 'bh3'"),
        (6, {"solver": "dpmpp", "nfe": 0}, "nfe of at least 3, got 0"),
        (1, {"solver": "euler"}, "nfe of at least 1, got 0"),
        (3, {"solver": "dpmpp", "order": 3}, "order 3 needs an integer nfe of at least 3, got 2"),
        (6, {"solver": "dpmpp", "nfe": 6}, "takes a grid of 6 steps, got 5"),
        (6, {"solver": "heun", "nfe": 8}, "takes a grid of 4 steps, got 5"),
    ],
)
def test_bad_choices_are_refused(n_points, choices, message):
    with pytest.raises(ValueError, match=message):
        make_table(SCHEDULES["VELinear"], jnp.linspace(80.0, 0.002, n_points), **choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"name": ["ddim"]}, r"solver must be one of .*got \['ddim'\]"),
        ({"order": "3"}, "has the orders .*got '3'"),
        ({"name": "ddim", "order": True}, "has the orders .*got True"),
        ({"name": "euler", "order": 1, "variant": "bh2"}, r"'euler' has the variants \[\], got 'bh2'"),
        ({"nfe": 5.0}, "an integer nfe of at least 3, got 5.0"),
        ({"nfe": "5"}, "an integer nfe of at least 3, got '5'"),
        ({"lower_order_final": "no"}, "lower_order_final must be True or False, got 'no'"),
        ({"last_sigma": 0.002}, "last_sigma must be None or 0, got 0.002"),
        ({"last_sigma": False}, "last_sigma must be None or 0, got False"),
        ({"name": "heun", "order": 2, "nfe": 4, "last_sigma": 0.0}, "'heun' has one call, so nfe must be odd, got 4"),
    ],
)
def test_choices_of_other_types_are_refused(choices, message):
    # The run-time type checks of the test suite would see it first: the values go past them.
    solver = Solver()
    for name, value in choices.items():
        object.__setattr__(solver, name, value)
    with pytest.raises(ValueError, match=message):
        solver.__post_init__()


def test_a_solver_describes_itself():
    assert str(Solver("dpmpp", 5)) == "dpmpp of order 3, 5 calls"
    assert str(Solver("ddim")) == "ddim of order 1"
    assert {name: Solver(name).prediction for name in ("heun", "deis", "ddim", "unipc")} == {
        "heun": "noise",
        "deis": "noise",
        "ddim": "data",
        "unipc": "data",
    }
    assert Solver("unipc", 5) == Solver(**json.loads(json.dumps(dataclasses.asdict(Solver("unipc", 5)))))
    assert jax.tree.leaves(Solver()) == []


def test_a_solver_and_its_grid_agree_on_the_number_of_steps():
    assert [Solver("heun", nfe).n_steps for nfe in (2, 7, 8)] == [1, 4, 4]
    assert Solver("dpmpp", 5).n_steps == 5
    assert Solver("heun").for_steps(4) == Solver("heun", 8)
    assert Solver("heun", 7).for_steps(4) == Solver("heun", 7)
    with pytest.raises(ValueError, match="give it nfe"):
        _ = Solver("dpmpp").n_steps


@pytest.mark.parametrize("shape", [(5,), (6, 1)])
def test_t_and_t_c_of_unlike_shapes_are_refused(shape):
    # The run-time type checks of the test suite see it first; without them it is the function's own ValueError.
    t = jnp.linspace(80.0, 0.002, 6)
    unchecked = getattr(solvers.make_table, "__wrapped__", solvers.make_table)
    with pytest.raises(ValueError, match="vectors of one length"):
        unchecked(SCHEDULES["VELinear"], t, jnp.ones(shape))


@pytest.fixture
def unchecked():
    """Without the checks of types that the tests put before the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


RIGHT = [80.0, 10.0, 0.002]


@pytest.mark.parametrize(
    ("t", "t_c", "message"),
    [
        ([1.0, 10.0, 80.0], RIGHT, r"t must descend, got \["),
        ([80.0, 10.0, 10.0], RIGHT, "t must descend, .* a last step of no length is sampled with last_sigma=0"),
        ([80.0, 79.99999, 10.0], RIGHT, "t must descend, .* in float32"),
        ([80.0, float("nan"), 0.002], RIGHT, r"t must be finite, got \[80.0, nan"),
        ([float("inf"), 10.0, 0.002], RIGHT, r"t must be finite, got \[inf"),
        ([80.0, 10.0, -0.002], RIGHT, "t must .* got 80 to -0.002"),
        ([80.01, 10.0, 0.002], RIGHT, "t must .* got 80.01 to 0.002"),
        ([80.0, 10.0, 0.00199], RIGHT, "t must .* got 80 to 0.00199"),
        ([80.0, 0.002, 0.0], RIGHT, "t must .* got 80 to 0; a solver with last_sigma=0 ends at 0, others at t_min"),
        ([999.0, 500.0, 0.0], RIGHT, r"t must .* got 999 to 0; if these are timesteps: .* t = \(i \+ 1\) / N"),
        (RIGHT, [80.0, float("nan"), 0.002], "t_c must be finite"),
        (RIGHT, [80.0, 10.0, -1.0], "t_c must lie"),
        (RIGHT, [0.002, 10.0, 80.0], "t_c must descend"),
    ],
)
def test_times_that_no_solver_can_run_on_are_refused(t, t_c, message):
    times = jnp.asarray(t), jnp.asarray(t_c)
    with pytest.raises(ValueError, match=message):
        solvers.make_table(schedules.VELinear(), *times, solver="ddim")
    with pytest.raises(ValueError, match=message):  # also for constants in jit
        jax.eval_shape(
            lambda x: solvers.sample(lambda x, t, cond: x, schedules.VELinear(), x, *times, solver="ddim"), jnp.ones(2)
        )


def test_times_of_each_part_are_held_against_its_own_range():
    t = jnp.stack([jnp.linspace(1.0, 0.0, 4), jnp.linspace(1.0, -0.1, 4), jnp.linspace(1.0, 0.0, 4)], -1)
    with pytest.raises(ValueError, match=r"t must lie from 1 to 0, .* got 1 to -0.1"):
        solvers.make_table(PoseNoise(), t, solver="ddim")


def test_a_part_of_the_range_and_rounded_ends_are_times():
    schedule, t = schedules.VELinear(), jnp.asarray([10.0, 1.0, 0.1])
    assert np.isfinite(
        solvers.make_table(schedule, t, jnp.asarray([10.0, 10.0, 0.1]), solver="ddim").predict_base
    ).all()
    power = (80 ** (1 / 7) + jnp.linspace(0.0, 1.0, 3) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # rounds in float32
    assert np.isfinite(solvers.make_table(schedule, power, solver="ddim").predict_base).all()


@pytest.mark.parametrize("t", [jnp.array([80, 10, 1]), [80, 10, 1]])
def test_times_that_are_integers_are_refused(t, unchecked):
    with pytest.raises(ValueError, match="must be of a floating-point dtype, got int32 and int32"):
        solvers.make_table(schedules.VELinear(), t, solver="ddim")


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "unipc"])
def test_a_prediction_that_would_be_broadcast_is_refused(solver):
    schedule = schedules.VELinear()
    with pytest.raises(ValueError, match=r"shape of its input, \(4, 3\), got \(1, 3\)"):
        solvers.sample(
            lambda x, t, cond: x[:1], schedule, jnp.ones((4, 3)), grids.grid("edm", schedule, 4), solver=solver
        )


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "unipc"])
def test_states_of_half_precision_are_integrated_in_the_grids_precision(solver):
    schedule, x_T = schedules.VELinear(), jnp.ones((4, 3), jnp.bfloat16)
    t = grids.grid("edm", schedule, 4)
    half, single = (solvers.sample(lambda x, t, cond: 0.1 * x, schedule, x, t, solver=solver) for x in (x_T, x_T * 1.0))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, single)
