"""Solver tables: constant predictions integrate exactly, families coincide where theory says so, phi near 0."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from numpy.polynomial import Polynomial

from ld3_jax import schedules, solvers
from ld3_jax.solvers import Solver, numerics

UNEVEN = np.array([0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
GRIDS = {
    name: (schedule, schedule.t_max + (schedule.t_min - schedule.t_max) * UNEVEN)
    for name, schedule in [("VPLinear", schedules.VPLinear()), ("VELinear", schedules.VELinear())]
}
every_case = pytest.mark.parametrize(("solver", "order", "variant"), reference.CASES)
every_grid = pytest.mark.parametrize(("schedule", "t"), GRIDS.values(), ids=GRIDS)

_solve = jax.jit(solvers.solve)


def make_table(schedule, t, solver, order, variant="-", **options):
    variant = {} if variant == "-" else {"variant": variant}
    return solvers.make_table(schedule, jnp.asarray(t), solver=Solver(solver, order=order, **variant, **options))


def orders(table):
    """The number of predictions that each row's predictor uses."""
    return np.count_nonzero(np.asarray(table.predict_history), axis=1).tolist()


@pytest.mark.parametrize(
    ("grid", "solver", "order", "variant", "lower_order_final"),
    [
        (grid, *case, final)
        for grid in GRIDS
        for case in reference.CASES
        for final in ((True, False) if case[0] in reference.WITH_LOWER_ORDER_FINAL else (True,))
        # Euler on t is exact where the state is linear in t, as on VELinear.
        if (grid, case[0]) != ("VPLinear", "euler")
    ],
)
def test_a_constant_prediction_is_integrated_exactly(grid, solver, order, variant, lower_order_final, float64):
    schedule, t = GRIDS[grid]
    table = make_table(schedule, t, solver, order, variant, lower_order_final=lower_order_final)
    x_T, c = jnp.asarray([[3.0, -1.0]]) * schedule.prior_scale, jnp.asarray([[0.7, 0.2]])
    (alpha_T, alpha), (sigma_T, sigma) = schedule.alpha(jnp.asarray(t))[::5], schedule.sigma(jnp.asarray(t))[::5]
    if solvers.SOLVERS[solver].prediction == "data":
        exact = alpha * c + sigma * (x_T - alpha_T * c) / sigma_T
    else:
        exact = sigma * c + alpha * (x_T - sigma_T * c) / alpha_T
    x_0 = _solve(jax.tree_util.Partial(_constant, c), table, x_T)
    np.testing.assert_allclose(x_0, exact, rtol=1e-11, atol=1e-11)


def _constant(c, x, t, cond):
    return c


@every_grid
def test_first_order_solvers_coincide(schedule, t, float64):
    ddim = make_table(schedule, t, "ddim", 1)
    chex.assert_trees_all_equal(ddim, make_table(schedule, t, "dpmpp", 1))
    predictor = make_table(schedule, t, "unipc", 1, "bh1")
    np.testing.assert_allclose(predictor.predict_history[:, :1], ddim.predict_history, rtol=1e-13)
    np.testing.assert_allclose(predictor.predict_base, ddim.predict_base, rtol=1e-13)
    chex.assert_trees_all_close(make_table(schedule, t, "ipndm", 1), make_table(schedule, t, "deis", 1), rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "order", "lower_order_final", "expected"),
    [
        ("dpmpp", 3, True, [1, 2, 3, 2, 1]),
        ("dpmpp", 3, False, [1, 2, 3, 3, 3]),
        ("dpmpp", 2, True, [1, 2, 2, 2, 1]),
        ("unipc", 3, True, [1, 2, 3, 2, 1]),
        ("unipc", 3, False, [1, 2, 3, 3, 3]),
        ("ipndm", 4, True, [1, 2, 3, 4, 4]),
        ("deis", 3, True, [1, 2, 3, 3, 3]),
    ],
)
def test_orders_rise_and_fall(solver, order, lower_order_final, expected, float64):
    schedule, t = GRIDS["VPLinear"]
    table = make_table(schedule, t, solver, order, lower_order_final=lower_order_final)
    assert orders(table) == expected


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_on_ve_linear_is_the_integral_of_lagranges_polynomials(order, float64):
    schedule, t = GRIDS["VELinear"]
    table = make_table(schedule, t, "deis", order)
    for i, weights in enumerate(np.asarray(table.predict_history)):
        nodes = t[max(0, i + 1 - order) : i + 1][::-1]
        for j, node in enumerate(nodes):
            roots = [Polynomial([-other, 1.0]) for other in np.delete(nodes, j)]
            lagrange = math.prod(roots, start=Polynomial([1.0]))
            integral = (lagrange / lagrange(node)).integ()
            assert weights[j] == pytest.approx(integral(t[i + 1]) - integral(t[i]), rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_accurate_in_float32(k):
    z = np.concatenate([np.geomspace(1e-6, 12, 100), [0.01, 0.5, 0.999, 1.0, 1.001]]).astype(np.float32)
    z = np.concatenate([[np.float32(0)], z, -z])
    exact = [math.fsum(float(x) ** j / math.factorial(j + k) for j in range(60)) for x in z]
    np.testing.assert_allclose(numerics.phi(k, jnp.asarray(z)), exact, rtol=4e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_gradient_of_phi_is_the_series_own(k, float64):
    z = jnp.asarray([-2.0, -1e-3, 0.0, 1e-3, 2.0])
    exact = [sum(j * x ** (j - 1) / math.factorial(j + k) for j in range(1, 40)) for x in z.tolist()]
    gradient = jax.jit(jax.vmap(jax.grad(lambda z: numerics.phi(k, z))))(z)
    np.testing.assert_allclose(gradient, exact, rtol=1e-10)


@every_case
def test_a_table_has_a_row_for_each_network_call(solver, order, variant, float64):
    schedule, t = GRIDS["VPLinear"]
    calls = {"heun": [10, 9], "dpm2": [10, 9]}.get(solver, [5])
    for nfe in calls:
        table = make_table(schedule, t, solver, order, variant, nfe=nfe)
        assert {len(column) for column in table} == {nfe}


def test_the_network_is_given_t_c(float64):
    schedule, t = GRIDS["VPLinear"]
    t_c = np.maximum(0.99 * t, t[-1])

    def given(solver):
        return solvers.make_table(schedule, jnp.asarray(t), jnp.asarray(t_c), solver=Solver(solver)).t

    for solver in ["euler", "ddim", "dpmpp", "unipc", "ipndm", "deis"]:
        np.testing.assert_array_equal(given(solver), t_c[:-1])
    np.testing.assert_array_equal(given("heun"), np.stack([t_c[:-1], t_c[1:]], 1).ravel())
    dpm2 = given("dpm2")
    lam = np.asarray(schedule.lam(jnp.asarray(t)))
    np.testing.assert_array_equal(dpm2[::2], t_c[:-1])
    np.testing.assert_allclose(schedule.lam(dpm2[1::2]), (lam[:-1] + lam[1:]) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"t": jnp.ones(4)},
        {"correct_base": jnp.ones((5, 1))},
        {"correct_history": jnp.ones((5, 2))},
        {"predict_history": jnp.ones((4, 3))},
        {"predict_history": jnp.ones(5)},
    ],
    ids=lambda change: "".join(change),
)
def test_a_table_whose_columns_do_not_fit_together_is_refused(change):
    ones = jnp.ones(5)
    table = solvers.Table(ones, ones, ones, jnp.ones((5, 0)), ones, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=rf"a row for each network call.* got .*{next(iter(change))}="):
        _solve(jax.tree_util.Partial(_constant, 1.0), table._replace(**change), ones)
