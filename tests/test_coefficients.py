"""Learned coefficients: zeros change nothing, consistent changes keep constants exact, each acts where it should."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ld3_jax import denoisers, learning, schedules, solvers
from ld3_jax.learning import Gaps, WithCoefficients
from ld3_jax.learning.discretization import changed, consistent, no_change
from ld3_jax.networks import gaussian
from ld3_jax.solvers import SOLVERS, Solver

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
NFE = 6
FAMILIES = sorted(SOLVERS)


def on_grid(solver):
    return learning.on_grid("logsnr", SCHEDULE, Solver(solver, NFE))


@pytest.fixture(scope="module")
def exact():
    """Every family's table, in double precision."""
    with jax.enable_x64(True):
        make = jax.jit(lambda: {name: on_grid(name).table(SCHEDULE, Solver(name, NFE)) for name in FAMILIES})
        return make()


@pytest.fixture(scope="module")
def tables(exact):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), exact)


@partial(jax.jit, static_argnums=1)
def end_of(table, prediction, x_T):
    return solvers.solve(denoisers.convert(MODEL, SCHEDULE, prediction), table, x_T)


with_change = jax.jit(changed)


def random_change(table, k=None, size=0.1, seed=0):
    flat, unravel = ravel_pytree(no_change(table, k))
    return unravel(size * jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype))


@pytest.mark.parametrize(("solver", "k"), [*((solver, None) for solver in FAMILIES), ("dpmpp", 2)])
def test_zeros_change_no_sample(solver, k, tables):
    table, prediction = tables[solver], Solver(solver, NFE).prediction
    x_T = jax.random.normal(jax.random.key(0), (5, 2))
    plain = end_of(table, prediction, x_T)
    same = end_of(with_change(table, no_change(table, k)), prediction, x_T)
    np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-6)
    other = end_of(with_change(table, random_change(table, k)), prediction, x_T)
    assert np.abs(other - plain).max() > 1e-2


def test_a_discretization_with_coefficients_has_the_changed_table(tables):
    change = random_change(tables["dpmpp"])
    solver = Solver("dpmpp", NFE)
    table = jax.jit(lambda change: on_grid("dpmpp")._replace(coefficients=change).table(SCHEDULE, solver))(change)
    chex.assert_trees_all_close(table, with_change(tables["dpmpp"], change), rtol=1e-4, atol=1e-5)


@jax.jit
def of_a_constant(table, change, constant, x_T):
    """Where a constant prediction leads: by the table, by a consistent change of it, and by any change."""

    def end(table):
        return solvers.solve(lambda x, t, cond: jnp.broadcast_to(constant, x.shape), table, x_T)

    return end(table), end(changed(table, consistent(change))), end(changed(table, change))


@pytest.mark.parametrize("solver", FAMILIES)
def test_a_consistent_change_integrates_constants_exactly(solver, exact, float64):
    table = exact[solver]
    constant, x_T = np.array([0.7, -1.3]), np.array([[0.2, 1.1]])
    plain, same, other = of_a_constant(table, random_change(table), constant, x_T)
    np.testing.assert_allclose(same, plain, rtol=1e-12)
    if SOLVERS[solver].prediction == "data":  # DDIM's step is exact for constant data, whatever the grid
        ends = jnp.asarray([SCHEDULE.t_max, SCHEDULE.t_min])
        scale, alpha = np.exp(np.diff(SCHEDULE.log_sigma(ends))), np.asarray(SCHEDULE.alpha(ends))
        np.testing.assert_allclose(same, scale * (x_T - alpha[0] * constant) + alpha[1] * constant, rtol=1e-9)
    assert np.abs(other - plain).max() > 1e-4


def test_a_change_is_relative_to_a_row_s_weights(tables):
    table = tables["dpmpp"]
    change = no_change(table)
    change = change._replace(base=change.base.at[2].set(0.5), predict=change.predict.at[4, 3].set(-0.25))
    new = changed(table, change)
    np.testing.assert_allclose(new.predict_base[2], 1.5 * table.predict_base[2], rtol=1e-6)
    np.testing.assert_allclose(new.predict_history[4, 3], -0.25 * table.predict_history[4].sum(), rtol=1e-6)
    np.testing.assert_allclose(new.predict_history[4, :3], table.predict_history[4], rtol=1e-6)
    chex.assert_trees_all_equal(new.t, table.t)


def test_what_looks_back_beyond_the_first_prediction_has_no_effect(tables):
    table = tables["ipndm"]
    change = no_change(table)
    beyond = change._replace(predict=change.predict.at[1, 2].set(9.0).at[0, 5].set(9.0))
    chex.assert_trees_all_equal(changed(table, beyond), changed(table, change))


def test_only_a_family_with_a_corrector_has_corrector_coefficients(tables):
    correct = {solver: no_change(table).correct for solver, table in tables.items()}
    assert {solver for solver, weights in correct.items() if len(weights)} == {"unipc"}
    assert correct["unipc"].shape == (NFE, NFE)


def test_a_change_for_another_number_of_calls_is_refused(tables):
    with pytest.raises(ValueError, match="coefficients for 6 network calls on a table of 4"):
        changed(jax.tree.map(lambda leaf: leaf[:4], tables["dpmpp"]), no_change(tables["dpmpp"]))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"history": 0}, "history must be at least 1, got 0"),
        ({"frozen": ("weights",)}, r"some of \['coefficients'\], got \('weights',\)"),
    ],
)
def test_a_bad_choice_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        WithCoefficients(**choice)


@pytest.mark.parametrize(("history", "consistently"), [(None, False), (2, True)])
def test_the_numbers_are_those_of_the_times_and_zeros_or_the_start_s_own(history, consistently, tables):
    solver, start = Solver("unipc", NFE), on_grid("unipc")
    parametrisation = WithCoefficients(Gaps("t"), consistently, history)
    params = parametrisation.init(start, SCHEDULE, solver)
    zeros = no_change(tables["unipc"], history)
    chex.assert_trees_all_equal(params, Gaps("t").init(start, SCHEDULE, solver) | {"coefficients": zeros}, strict=True)
    change = random_change(tables["unipc"], history)
    if consistently:
        with pytest.raises(ValueError, match="do not integrate constants exactly, so consistent must be False"):
            parametrisation.init(start._replace(coefficients=change), SCHEDULE, solver)
        change = consistent(change)
    params = parametrisation.init(start._replace(coefficients=change), SCHEDULE, solver)
    found = jax.jit(lambda params: parametrisation.discretization(params, SCHEDULE, solver))(params)
    chex.assert_trees_all_close(found.coefficients, change, atol=1e-6)
    if history:
        with pytest.raises(ValueError, match=f"look back at {NFE} predictions, history is {history}"):
            parametrisation.init(start._replace(coefficients=no_change(tables["unipc"])), SCHEDULE, solver)


def test_gradients_of_coefficients_equal_finite_differences(exact, float64):
    x_T = jax.random.normal(jax.random.key(0), (3, 2))
    table = exact["unipc"]
    change, direction = random_change(table), random_change(table, seed=1)

    @jax.jit
    @jax.value_and_grad
    def objective(size):
        moved = jax.tree.map(lambda c, d: c + size * d, change, direction)
        return jnp.sum(solvers.solve(denoisers.convert(MODEL, SCHEDULE, "data"), changed(table, moved), x_T) ** 2)

    h = 1e-5
    (_, slope), (ahead, _), (behind, _) = map(objective, (0.0, h, -h))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize(("solver", "other"), [("unipc", "dpmpp"), ("dpmpp", "unipc")])
def test_coefficients_of_a_corrector_belong_to_a_solver_that_has_one(solver, other, tables):
    with pytest.raises(ValueError, match="coefficients must have 'correct' where the solver has a corrector"):
        changed(tables[solver], no_change(tables[other]))
