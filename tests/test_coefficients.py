"""Learned coefficients: zeros change nothing, consistent changes keep constants exact, each acts where it should."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ld3_jax import schedules, solvers, timesteps
from ld3_jax.coefficients import changed, consistent, no_change
from ld3_jax.networks import gaussian
from ld3_jax.solvers import SOLVERS

SCHEDULE = schedules.vp_linear()
NFE = 6
FAMILIES = sorted(SOLVERS)


@partial(jax.jit, static_argnames=("solver", "nfe"))
def make_table(solver, nfe=NFE):
    n = -(-nfe // SOLVERS[solver].calls_per_step)
    return solvers.make_table(SCHEDULE, timesteps.grid("logsnr", SCHEDULE, n), solver=solver, nfe=nfe)


def random_change(table, k=None, size=0.1, seed=0):
    flat, unravel = ravel_pytree(no_change(table, k))
    return unravel(size * jax.random.normal(jax.random.key(seed), flat.shape))


@pytest.mark.parametrize(("solver", "k"), [*((solver, None) for solver in FAMILIES), ("dpmpp", 2)])
def test_zeros_change_no_sample(solver, k):
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    x_T = jax.random.normal(jax.random.key(0), (5, 2))
    t = timesteps.grid("logsnr", SCHEDULE, -(-NFE // SOLVERS[solver].calls_per_step))
    zeros = no_change(make_table(solver), k)
    sample = jax.jit(partial(solvers.sample, solver=solver, nfe=NFE))
    plain = sample(model, SCHEDULE, x_T, t)
    same = sample(model, SCHEDULE, x_T, t, coefficients=zeros)
    np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-6)
    other = sample(model, SCHEDULE, x_T, t, coefficients=random_change(make_table(solver), k))
    assert jnp.abs(other - plain).max() > 1e-2


@pytest.mark.parametrize("solver", FAMILIES)
def test_a_consistent_change_integrates_constants_exactly(solver, float64):
    table = make_table(solver)
    change = consistent(random_change(table))
    constant = jnp.asarray([0.7, -1.3])
    x_T = jnp.asarray([[0.2, 1.1]])
    of_data = SOLVERS[solver].prediction == "data"

    @jax.jit
    def end(table):
        return solvers.solve(lambda x, t, cond: jnp.broadcast_to(constant, x.shape), table, x_T)

    np.testing.assert_allclose(end(changed(table, change)), end(table), rtol=1e-12)
    if of_data:  # DDIM's step is exact for constant data, whatever the grid
        scale = jnp.exp(jnp.diff(SCHEDULE.log_sigma(jnp.asarray([SCHEDULE.t_max, SCHEDULE.t_min]))))
        alpha = SCHEDULE.alpha(jnp.asarray([SCHEDULE.t_max, SCHEDULE.t_min]))
        exact = scale[0] * (x_T - alpha[0] * constant[None]) + alpha[1] * constant[None]
        np.testing.assert_allclose(end(changed(table, change)), exact, rtol=1e-9)
    assert jnp.abs(end(changed(table, random_change(table))) - end(table)).max() > 1e-4


def test_a_change_is_relative_to_a_row_s_weights():
    table = make_table("dpmpp")
    change = no_change(table)
    change = change._replace(base=change.base.at[2].set(0.5), predict=change.predict.at[4, 3].set(-0.25))
    new = changed(table, change)
    np.testing.assert_allclose(new.predict_base[2], 1.5 * table.predict_base[2], rtol=1e-6)
    np.testing.assert_allclose(new.predict_history[4, 3], -0.25 * table.predict_history[4].sum(), rtol=1e-6)
    np.testing.assert_allclose(new.predict_history[4, :3], table.predict_history[4], rtol=1e-6)
    np.testing.assert_array_equal(new.t, table.t)


def test_what_looks_back_beyond_the_first_prediction_has_no_effect():
    table = make_table("ipndm")
    change = no_change(table)
    beyond = change._replace(predict=change.predict.at[1, 2].set(9.0).at[0, 5].set(9.0))
    np.testing.assert_array_equal(changed(table, beyond).predict_history, changed(table, change).predict_history)


def test_only_a_family_with_a_corrector_has_corrector_coefficients():
    correct = {solver: no_change(make_table(solver)).correct for solver in FAMILIES}
    assert {solver for solver, weights in correct.items() if len(weights)} == {"unipc"}
    assert correct["unipc"].shape == (NFE, NFE)


def test_a_corrector_keeps_its_weights_where_none_are_learned_for_it():
    table = make_table("unipc")
    new = changed(table, no_change(table)._replace(correct=()))
    np.testing.assert_array_equal(new.correct_history[:, : table.correct_history.shape[1]], table.correct_history)
    assert new.correct_history.shape == new.predict_history.shape


def test_a_change_for_another_number_of_calls_is_refused():
    with pytest.raises(ValueError, match="coefficients for 6 network calls on a table of 4"):
        changed(make_table("dpmpp", 4), no_change(make_table("dpmpp", 6)))


def test_gradients_of_coefficients_equal_finite_differences(float64):
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    t = timesteps.grid("logsnr", SCHEDULE, NFE)
    x_T = jax.random.normal(jax.random.key(0), (3, 2))
    change = random_change(make_table("unipc"))

    @jax.jit
    def objective(change):
        return jnp.sum(solvers.sample(model, SCHEDULE, x_T, t, solver="unipc", coefficients=change) ** 2)

    direction = random_change(make_table("unipc"), seed=1)
    slope = jnp.vdot(ravel_pytree(jax.grad(objective)(change))[0], ravel_pytree(direction)[0])
    h = 1e-5
    ahead, behind = (objective(jax.tree.map(lambda c, d, s=s: c + s * h * d, change, direction)) for s in (1, -1))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-6)
