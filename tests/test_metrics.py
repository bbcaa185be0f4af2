"""Metrics: a student's samples and losses, over any number of pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import losses, metrics, schedules, solvers, timesteps
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.vp_linear()
METHOD = solvers.Method("ddim", 3)
GRID = timesteps.grid("logsnr", SCHEDULE, 3)


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
def student():
    return metrics.make_student(Partial(_network, jnp.float32(0.7)), SCHEDULE, METHOD, losses.l2)


@pytest.fixture(scope="module")
def samples(student, pairs):
    return jax.jit(partial(solvers.sample, solver="ddim"))(student.model, SCHEDULE, pairs.x_T, GRID, cond=pairs.cond)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_of_any_size_make_no_difference(batch_size, student, pairs, samples):
    in_batches = metrics.run_in_batches(student, GRID, GRID, pairs, batch_size=batch_size)
    np.testing.assert_allclose(in_batches, samples, rtol=1e-5, atol=1e-6)
    distances = metrics.distances(student, GRID, GRID, pairs, batch_size=batch_size)
    np.testing.assert_allclose(distances, np.mean((samples - pairs.x_0) ** 2, -1), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_in_batches_keeps_the_order_of_a_pytree(batch_size):
    tree = {"a": np.arange(7), "b": np.arange(42.0).reshape(7, 3, 2)}
    sizes = []

    def function(batch):
        sizes.append(len(batch["a"]))
        return jax.tree.map(lambda leaf: 2 * leaf, batch)

    doubled = metrics.in_batches(function, jax.tree.map(jnp.asarray, tree), batch_size)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, 2 * old), doubled, tree)
    assert max(sizes) <= batch_size


@pytest.mark.parametrize(("name", "norm"), [("l1", np.abs), ("l2", np.square)])
def test_losses_are_those_of_the_samples_that_run_returns(name, norm, student, pairs):
    student = metrics.make_student(student.model, SCHEDULE, METHOD, losses.LOSSES[name])
    t_c = timesteps.grid("edm", SCHEDULE, 3)
    each = metrics.sample_losses(student, GRID, t_c, pairs)
    expected = norm(np.asarray(metrics.run(student, GRID, t_c, pairs)) - pairs.x_0).mean(-1)
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert np.abs(each - metrics.sample_losses(student, GRID, GRID, pairs)).max() > 1e-4


def test_samples_are_decoded_before_the_loss_sees_them(student, pairs, samples):
    decoding = metrics.make_student(
        student.model, SCHEDULE, METHOD, lambda x, y: losses.l2(x["image"], y["image"]), _decode
    )
    decoded = metrics.run(decoding, GRID, GRID, pairs)
    np.testing.assert_allclose(decoded["image"], 2 * samples + 1, rtol=1e-5)
    targets = pairs._replace(x_0=_decode(pairs.x_0))
    distances = metrics.distances(decoding, GRID, GRID, targets)
    np.testing.assert_allclose(distances, 4 * losses.l2(samples, pairs.x_0), rtol=1e-5)


def test_a_plain_function_serves_as_model(student, pairs, samples):
    def plain(x, t, cond):
        return _network(jnp.float32(0.7), x, t, cond)

    np.testing.assert_allclose(
        metrics.run(metrics.make_student(plain, SCHEDULE, METHOD), GRID, GRID, pairs), samples, rtol=1e-5
    )


def test_weights_are_leaves_and_other_weights_compile_nothing(student, pairs):
    other = metrics.make_student(Partial(_network, jnp.float32(0.9)), SCHEDULE, METHOD, losses.l2)
    assert jax.tree.leaves(student) == [jnp.float32(0.7)]
    first = metrics.distances(student, GRID, GRID, pairs)
    compiled = metrics.run_in_batches._cache_size()
    assert np.abs(metrics.distances(other, GRID, GRID, pairs) - first).max() > 1e-3
    assert metrics.run_in_batches._cache_size() == compiled
