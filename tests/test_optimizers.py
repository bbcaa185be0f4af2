"""Optimisers: PyTorch's RMSprop, a rule and a rate for each group, clipping group by group."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ld3_jax.learning import by_group, optimizers

NUMBERS = {"logits": jnp.zeros(3), "shifts": jnp.zeros(2)}
GRADIENTS = {"logits": jnp.asarray([0.3, -0.2, 0.1]), "shifts": jnp.asarray([0.1, -0.5])}


def updates_of(optimizer, grads, steps=1):
    """The last of so many updates under a constant gradient."""
    state, update = optimizer.init(NUMBERS), jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(grads, state, NUMBERS)
    return updates


def test_rmsprop_follows_the_recurrence_of_pytorch(float64):
    grads = 0.3 * np.random.default_rng(0).uniform(-1, 1, (50, 4))
    optimizer = optimizers.rmsprop(5e-3, 50)
    params, update = jnp.ones(4), jax.jit(optimizer.update)
    state = optimizer.init(params)
    expected, square, momentum = np.ones(4), np.zeros(4), np.zeros(4)
    for grad in grads:
        updates, state = update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        square = 0.99 * square + 0.01 * grad**2
        momentum = 0.9 * momentum + grad / (np.sqrt(square) + 1e-8)
        expected = expected - 5e-3 * momentum
        np.testing.assert_allclose(params, expected, rtol=1e-12)


@pytest.mark.parametrize(("step", "factor"), [(1, 1.0), (6, 0.51), (11, 0.02), (15, 0.02)])
def test_adams_rate_falls_along_a_cosine_to_two_percent(step, factor):
    optimizer = by_group({"logits": optimizers.adam(0.05, 10), "shifts": optimizers.adam(0.01, 10)})
    updates = updates_of(optimizer, GRADIENTS, step)
    np.testing.assert_allclose(updates["logits"], -0.05 * factor * np.sign(GRADIENTS["logits"]), rtol=1e-4)
    np.testing.assert_allclose(updates["shifts"], -0.01 * factor * np.sign(GRADIENTS["shifts"]), rtol=1e-4)


def test_each_group_has_its_own_rule_and_rate():
    alone = optimizers.rmsprop(0.02, 10)
    mixed = updates_of(by_group({"logits": optimizers.sgd(0.1, 10), "shifts": alone}), GRADIENTS, 3)
    state = alone.init(NUMBERS["shifts"])
    for _ in range(3):
        expected, state = alone.update(GRADIENTS["shifts"], state)
    np.testing.assert_allclose(mixed["logits"], -0.1 * GRADIENTS["logits"], rtol=1e-6)
    np.testing.assert_allclose(mixed["shifts"], expected, rtol=1e-6)


def test_a_group_without_a_rule_does_not_move():
    updates = updates_of(by_group({"logits": optimizers.sgd(0.1, 10)}), GRADIENTS)
    np.testing.assert_allclose(updates["logits"], -0.1 * GRADIENTS["logits"], rtol=1e-6)
    np.testing.assert_array_equal(updates["shifts"], 0)


def test_gradients_are_clipped_to_norm_one_group_by_group():
    grads = {"logits": jnp.asarray([300.0, -400.0, 0.0]), "shifts": jnp.asarray([0.01, -0.02])}
    updates = updates_of(by_group({"logits": optimizers.sgd(0.1, 10), "shifts": optimizers.sgd(0.2, 10)}), grads)
    np.testing.assert_allclose(updates["logits"], [-0.06, 0.08, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["shifts"], [-0.002, 0.004], rtol=1e-6)


@pytest.mark.parametrize("rule", sorted(optimizers.RULES))
def test_a_zero_gradient_moves_nothing(rule):
    rules = {name: optimizers.RULES[rule](0.1, 10) for name in NUMBERS}
    chex.assert_trees_all_equal(updates_of(by_group(rules), NUMBERS), NUMBERS)


def test_equal_arguments_make_equal_optimizers():
    def make(rate):
        return by_group({"logits": optimizers.adam(0.05, 10), "shifts": optimizers.sgd(rate, 10)})

    assert make(0.01) == make(0.01)
    assert hash(make(0.01)) == hash(make(0.01))
    assert make(0.01) != make(0.02)
    assert by_group({"logits": optimizers.adam(0.05, 10)}) != by_group({"logits": optimizers.sgd(0.05, 10)})
