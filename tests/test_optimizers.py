"""Optimizers: PyTorch's RMSprop, a rule and a rate for each group, clipping group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ld3_jax import optimizers
from ld3_jax.timesteps import TimestepParams

PARAMS = TimestepParams(jnp.zeros(3), jnp.zeros(2))


def updates_of(optimizer, grads, steps=1):
    """The last of so many updates under a constant gradient."""
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, PARAMS)
    return updates


def test_rmsprop_follows_the_recurrence_of_pytorch(float64):
    grads = 0.3 * np.random.default_rng(0).uniform(-1, 1, (50, 4))
    optimizer = optimizers.rmsprop(5e-3, 50)
    params = jnp.ones(4)
    state = optimizer.init(params)
    expected, square, momentum = np.ones(4), np.zeros(4), np.zeros(4)
    for grad in grads:
        updates, state = optimizer.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        square = 0.99 * square + 0.01 * grad**2
        momentum = 0.9 * momentum + grad / (np.sqrt(square) + 1e-8)
        expected = expected - 5e-3 * momentum
        np.testing.assert_allclose(params, expected, rtol=1e-12)


@pytest.mark.parametrize(("step", "factor"), [(1, 1.0), (6, 0.51), (11, 0.02), (15, 0.02)])
def test_adams_rate_falls_along_a_cosine_to_two_percent(step, factor):
    grads = TimestepParams(jnp.asarray([0.3, -0.2, 0.1]), jnp.asarray([0.1, -0.5]))
    updates = updates_of(optimizers.make_optimizer("adam", 0.05, "adam", 0.01, 10), grads, step)
    np.testing.assert_allclose(updates.logits, -0.05 * factor * np.sign(grads.logits), rtol=1e-4)
    np.testing.assert_allclose(updates.shifts, -0.01 * factor * np.sign(grads.shifts), rtol=1e-4)


def test_each_group_has_its_own_rule_and_rate():
    grads = TimestepParams(jnp.asarray([0.3, -0.2, 0.1]), jnp.asarray([0.1, -0.5]))
    mixed = updates_of(optimizers.make_optimizer("sgd", 0.1, "rmsprop", 0.02, 10), grads, 3)
    alone = optimizers.rmsprop(0.02, 10)
    state = alone.init(PARAMS.shifts)
    for _ in range(3):
        expected, state = alone.update(grads.shifts, state)
    np.testing.assert_allclose(mixed.logits, -0.1 * grads.logits, rtol=1e-6)
    np.testing.assert_allclose(mixed.shifts, expected, rtol=1e-6)


def test_gradients_are_clipped_to_norm_one_group_by_group():
    grads = TimestepParams(jnp.asarray([300.0, -400.0, 0.0]), jnp.asarray([0.01, -0.02]))
    updates = updates_of(optimizers.make_optimizer("sgd", 0.1, "sgd", 0.2, 10), grads)
    np.testing.assert_allclose(updates.logits, [-0.06, 0.08, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates.shifts, [-0.002, 0.004], rtol=1e-6)


@pytest.mark.parametrize("rule", sorted(optimizers.RULES))
def test_a_zero_gradient_moves_nothing(rule):
    updates = updates_of(optimizers.make_optimizer(rule, 0.1, rule, 0.1, 10), PARAMS)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), updates)


def test_the_same_arguments_return_the_same_object():
    make = optimizers.make_optimizer
    assert make("adam", 0.05, "sgd", 0.01, 10) is make("adam", 0.05, "sgd", 0.01, 10)
    assert make("adam", 0.05, "sgd", 0.01, 10) is not make("adam", 0.05, "sgd", 0.02, 10)


@pytest.mark.parametrize("rules", [("lion", 0.1, "adam", 0.1, 10), ("adam", 0.1, "lion", 0.1, 10)])
def test_an_unknown_rule_is_refused(rules):
    with pytest.raises(ValueError, match=r"\['adam', 'rmsprop', 'sgd'\], got 'lion'"):
        optimizers.make_optimizer(*rules)
