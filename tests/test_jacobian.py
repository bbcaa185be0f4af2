"""Solvers written out, and their Jacobians: parity with running the table and with plain forward mode."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ld3_jax import denoisers, learning, losses, schedules, solvers
from ld3_jax.learning import Gaps, GaussNewton, LevenbergMarquardt, WithCoefficients
from ld3_jax.learning.discretization import like_another
from ld3_jax.learning.jacobian import (
    Directions,
    every_factor,
    passes,
    sample_and_jacobian,
    sample_and_jacobian_of_each,
)
from ld3_jax.learning.second_order import quadratic_model
from ld3_jax.learning.student import run
from ld3_jax.networks import gaussian
from ld3_jax.solvers import SOLVERS, Expansion, Solver, expand
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
NFE = 6
FAMILIES = sorted(SOLVERS)


def table_of(solver):
    return learning.on_grid("logsnr", SCHEDULE, solver).table(SCHEDULE, solver)


def model_of(solver):
    return denoisers.convert(MODEL, SCHEDULE, solver.prediction)


def noise(count=3):
    return jax.random.normal(jax.random.key(0), (count, 2), jnp.float64)


def run_written_out(model, expansion, x_T):
    """The states one after the other, in a plain loop."""
    predictions = []
    for i in range(len(expansion.t) + 1):
        x = expansion.initial[i] * x_T + sum(expansion.history[i, j] * p for j, p in enumerate(predictions))
        if i < len(expansion.t):
            predictions.append(model(x, expansion.t[i], None))
    return x


@pytest.mark.parametrize("name", FAMILIES)
def test_a_solver_written_out_gives_the_same_sample(name, float64):
    solver = Solver(name, NFE)
    expansion = jax.jit(expand)(table_of(solver))
    assert not np.triu(expansion.history[:NFE]).any()  # a state depends on earlier predictions alone
    expected = solvers.solve(model_of(solver), table_of(solver), noise())
    np.testing.assert_allclose(run_written_out(model_of(solver), expansion, noise()), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["dpmpp", "unipc", "ipndm"])
@pytest.mark.parametrize("other", ["ipndm", "unipc", "dpmpp"])
def test_with_its_coefficients_a_solver_does_what_another_does(name, other, float64):
    solver, other = Solver(name, NFE), Solver(other, NFE, 2)
    t = learning.on_grid("edm", SCHEDULE, solver).t
    found = like_another(other, t, SCHEDULE, solver)
    expected = solvers.sample(MODEL, SCHEDULE, noise(), t, solver=other)
    table = found.table(SCHEDULE, solver)
    np.testing.assert_allclose(solvers.solve(model_of(solver), table, noise()), expected, rtol=1e-7, atol=1e-9)


def random_directions(rng, first):
    """Directions that change states and times from their first call on."""
    calls, states = np.arange(NFE) >= first[:, None], np.arange(NFE + 1) >= first[:, None]
    earlier = np.arange(NFE) < np.arange(NFE + 1)[:, None]
    history = rng.normal(size=(len(first), NFE + 1, NFE)) * states[..., None] * earlier
    return Directions(
        first, Expansion(rng.normal(size=calls.shape) * calls, rng.normal(size=states.shape) * states, history)
    )


@pytest.mark.parametrize("at_a_time", [1, 4, 100])
def test_a_jacobian_is_that_of_forward_mode(at_a_time, float64):
    solver = Solver("dpmpp", NFE)
    directions = random_directions(np.random.default_rng(0), np.array([0, 1, 1, 3, 5, 6, 6]))
    expansion = expand(table_of(solver))

    @jax.jit
    def both():
        x, columns = sample_and_jacobian(model_of(solver), expansion, directions, noise(), None, at_a_time=at_a_time)

        def sample(change):
            return run_written_out(model_of(solver), jax.tree.map(jnp.add, expansion, change), noise())

        def column(change):
            return jax.jvp(sample, (jax.tree.map(jnp.zeros_like, expansion),), (change,))

        return (x, columns), jax.vmap(column, out_axes=(None, 0))(directions.change)

    own, expected = both()
    chex.assert_trees_all_close(own, expected, rtol=1e-9, atol=1e-11)


def test_every_factor_is_a_direction_once():
    first, change = every_factor(3)
    assert first.tolist() == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    flat = np.concatenate([np.reshape(part, (len(first), -1)) for part in change], 1)
    assert (flat.sum(1) == 1).all()
    assert flat.sum(0).max() == 1
    assert flat.sum() == 3 * (3 + 1) / 2 + 3 + 2  # factors of predictions, of x_T, and times


CASES = {
    "times": (Gaps(), Solver("ipndm", 5)),
    "times of two stages": (Gaps(), Solver("heun", 5)),
    "everything": (WithCoefficients(), Solver("dpmpp", 4)),
    "everything with a corrector": (WithCoefficients(), Solver("unipc", 4)),
    "some are frozen": (WithCoefficients(Gaps(frozen=("logits",))), Solver("ipndm", 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quadratic_model_is_that_of_the_whole_jacobian(case, float64):
    parametrisation, solver = CASES[case]
    student = learning.make_student(MODEL, SCHEDULE, solver, losses.l2)
    pairs = Pairs(noise(4), -0.5 * noise(4))
    task = learning.make_task(student, pairs, jax.random.key(0), parametrisation, LevenbergMarquardt(batch_size=4))
    params = parametrisation.init(learning.on_grid("edm", SCHEDULE, solver), SCHEDULE, solver)
    flat, unravel = ravel_pytree(params)
    mask, _ = ravel_pytree(jax.tree.map(lambda on: jnp.asarray(on, float), parametrisation.learned(params)))

    @jax.jit
    def both(flat):
        def residuals(flat):
            found = task.discretization(unravel(flat * mask + jax.lax.stop_gradient(flat * (1 - mask))))
            return (run(student, found, pairs.x_T) - pairs.x_0).ravel() / jnp.sqrt(pairs.x_0.size)

        r, jacobian = residuals(flat), jax.jacfwd(residuals)(flat)
        return quadratic_model(task, unravel(flat), pairs, 3), (r @ r, 2 * jacobian.T @ r, 2 * jacobian.T @ jacobian)

    model, expected = both(flat)
    chex.assert_trees_all_close(tuple(model), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("parametrisation", "solver", "calls"),
    [
        (Gaps(), Solver("dpmpp", 5), 5 + 2 * (4 + 3 + 2 + 1)),
        (Gaps(), Solver("heun", 6), 6 + 2 * (5 + 3)),
        (WithCoefficients(), Solver("dpmpp", 5), 5 + (4 + 3 + 2 + 1) + (2 * 4 + 3 * 3 + 4 * 2 + 5)),
    ],
)
def test_no_direction_passes_through_the_network_before_it_begins(parametrisation, solver, calls):
    student = learning.make_student(MODEL, SCHEDULE, solver)
    pairs = Pairs(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    task = learning.make_task(student, pairs, jax.random.key(0), parametrisation, GaussNewton(batch_size=2))
    params = parametrisation.init(learning.on_grid("edm", SCHEDULE, solver), SCHEDULE, solver)
    assert task.learner.calls(task, params) == calls


@pytest.mark.parametrize(("count", "expected"), [(2, 2), (8, 5)], ids=["forward", "in reverse"])
def test_the_jacobian_of_each_sample_is_that_of_the_batch(count, expected):
    numbers, directions = jax.random.normal(jax.random.key(1), (3,)), jax.random.normal(jax.random.key(2), (count, 3))
    x_T, cond = {"a": jnp.ones((4, 2)), "b": jax.random.normal(jax.random.key(3), (4, 3))}, jnp.arange(4.0)

    def sample(numbers, x_T, cond):
        a = jnp.sin(numbers[0] * x_T["a"] + cond[:, None])
        return {"a": a, "b": numbers[1] * x_T["b"] ** 2 + numbers[2] * a.sum(1, keepdims=True)}

    samples, derivatives = jax.jit(sample_and_jacobian_of_each, static_argnums=0)(
        sample, numbers, directions, x_T, cond
    )
    along = jax.vmap(lambda direction: jax.jvp(lambda n: sample(n, x_T, cond), (numbers,), (direction,))[1])(directions)
    assert passes(x_T, count) == expected
    chex.assert_trees_all_close(samples, sample(numbers, x_T, cond), rtol=1e-6)
    chex.assert_trees_all_close(derivatives, along, rtol=1e-5, atol=1e-6)
