"""Students: a model's samples with few steps and their losses, over any number of pairs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import grids, losses, schedules, solvers
from ld3_jax.learning import Discretization
from ld3_jax.learning.student import distances, make_student, run, run_in_batches, sample_losses
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
SOLVER = Solver("ddim", 3)
GRID = grids.grid("logsnr", SCHEDULE, 3)
FOUND = Discretization(GRID, GRID)


def _network(weights, x, t, cond):
    return weights * jnp.tanh(x) / (1 + t) + 0.1 * cond[:, None]


def _decode(x):
    return {"image": 2 * x + 1}


@pytest.fixture(scope="module")
def pairs():
    keys = jax.random.split(jax.random.key(0), 2)
    x_T, x_0 = (jax.random.normal(key, (7, 2)) for key in keys)
    return Pairs(x_T, x_0, jnp.arange(7.0))


@pytest.fixture(scope="module")
def perceptive():
    return make_student(Partial(_network, jnp.float32(0.7)), SCHEDULE, SOLVER)


@pytest.fixture(scope="module")
def samples(perceptive, pairs):
    sample = jax.jit(partial(solvers.sample, solver="ddim"))
    return sample(perceptive.model, SCHEDULE, pairs.x_T, GRID, cond=pairs.cond)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_of_any_size_make_no_difference(batch_size, perceptive, pairs, samples):
    in_batches = run_in_batches(perceptive, FOUND, pairs.x_T, pairs.cond, batch_size=batch_size)
    np.testing.assert_allclose(in_batches, samples, rtol=1e-5, atol=1e-6)
    each = distances(perceptive, FOUND, pairs, batch_size=batch_size)
    np.testing.assert_allclose(each, np.mean((samples - pairs.x_0) ** 2, -1), rtol=1e-5)


@pytest.mark.parametrize(("name", "norm"), [("l1", np.abs), ("l2", np.square)])
def test_losses_are_those_of_the_samples_that_run_returns(name, norm, perceptive, pairs):
    judged = make_student(perceptive.model, SCHEDULE, SOLVER, getattr(losses, name))
    decoupled = Discretization(GRID, grids.grid("edm", SCHEDULE, 3))
    each = sample_losses(judged, decoupled, pairs)
    expected = norm(np.asarray(run(judged, decoupled, pairs.x_T, pairs.cond)) - pairs.x_0).mean(-1)
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert np.abs(each - sample_losses(judged, FOUND, pairs)).max() > 1e-4


def test_samples_are_decoded_before_the_loss_sees_them(perceptive, pairs, samples):
    decoding = make_student(perceptive.model, SCHEDULE, SOLVER, lambda x, y: losses.l2(x["image"], y["image"]), _decode)
    decoded = run(decoding, FOUND, pairs.x_T, pairs.cond)
    np.testing.assert_allclose(decoded["image"], 2 * samples + 1, rtol=1e-5)
    targets = pairs._replace(x_0=_decode(pairs.x_0))
    each = distances(decoding, FOUND, targets)
    np.testing.assert_allclose(each, 4 * losses.l2(samples, pairs.x_0), rtol=1e-5)


def test_a_plain_function_serves_as_model(pairs, samples):
    def plain(x, t, cond):
        return _network(jnp.float32(0.7), x, t, cond)

    found = run(make_student(plain, SCHEDULE, SOLVER), FOUND, pairs.x_T, pairs.cond)
    np.testing.assert_allclose(found, samples, rtol=1e-5)


def test_weights_are_leaves_and_other_weights_loss_and_times_trace_nothing(perceptive, pairs):
    network = chex.assert_max_traces(_network, n=1)
    assert jax.tree.leaves(perceptive) == [jnp.float32(0.7)]
    first, other = (
        distances(make_student(Partial(network, jnp.float32(w)), SCHEDULE, SOLVER), FOUND, pairs) for w in (0.7, 0.9)
    )
    assert np.abs(other - first).max() > 1e-3
    judged = make_student(Partial(network, jnp.float32(0.7)), SCHEDULE, SOLVER, losses.l1)
    distances(judged, FOUND._replace(t_c=grids.grid("edm", SCHEDULE, 3)), pairs)


def test_a_student_needs_the_number_of_network_calls():
    with pytest.raises(ValueError, match=r"number of network calls, nfe, got .*dpmpp"):
        make_student(_network, SCHEDULE, Solver("dpmpp"))
