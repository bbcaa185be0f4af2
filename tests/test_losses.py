"""Losses: one number a sample, with the scale of a mean; and as functions of squares."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import losses

X = jnp.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
Y = jnp.asarray([[[1.0, 0.0], [3.0, 0.0]], [[1.0, -1.0], [1.0, -1.0]]])


@pytest.mark.parametrize(("name", "expected"), [("l1", [1.5, 1.0]), ("l2", [5.0, 1.0]), ("rmse", [5.0**0.5, 1.0])])
def test_loss_is_the_mean_of_each_sample(name, expected):
    np.testing.assert_allclose(getattr(losses, name)(X, Y), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "rmse"])
def test_loss_is_symmetric_and_zero_on_equal_samples(name):
    loss = getattr(losses, name)
    np.testing.assert_allclose(loss(X, Y), loss(Y, X))
    np.testing.assert_allclose(loss(X, X), 0.0, atol=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "rmse"])
def test_the_gradient_is_finite_where_samples_are_equal(name):
    chex.assert_tree_all_finite(jax.grad(lambda x: getattr(losses, name)(x, X).sum())(X))


@pytest.mark.parametrize("name", ["l1", "l2", "rmse"])
def test_the_loss_of_a_pytree_is_that_of_all_its_numbers(name):
    parts = ({"a": samples[:, 0], "b": (samples[:, 1:, 0], samples[:, 1:, 1])} for samples in (X, Y))
    np.testing.assert_allclose(getattr(losses, name)(*parts), getattr(losses, name)(X, Y), rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "rmse"])
def test_the_annotations_refuse_unlike_shapes(name):
    with pytest.raises(jaxtyping.TypeCheckError):
        getattr(losses, name)(X, Y[:, :1])
    with pytest.raises(ValueError, match="samples and targets must have the same shapes, got"):
        losses.l2.residuals(X, Y[:, :1])


@pytest.mark.parametrize("name", ["l2", "rmse", "both"])
def test_a_loss_of_squares_is_phi_of_the_sum_of_its_squared_residuals(name):
    loss = losses.LOSSES[name](losses.l2, Y)
    squares = sum(jnp.sum(part**2, -1) for part in loss.residuals(X, Y))
    np.testing.assert_allclose(jax.vmap(loss.phi)(squares), loss(X, Y), rtol=1e-6)


def test_a_loss_is_a_pytree_of_its_weights():
    weights = jnp.arange(2.0)
    residuals = Partial(lambda weights, x, y: [weights[None] * (x - y)[..., 0]], weights)
    loss = losses.Loss(residuals, jnp.sqrt, measure="own")
    np.testing.assert_array_equal(jax.tree.leaves(loss), [weights])
    expected = jnp.abs(X - Y)[:, 1, 0]
    np.testing.assert_allclose(jax.jit(lambda loss: loss(X, Y))(loss), expected)
    around = losses.both(X, loss)
    assert around.measure == "own"
    chex.assert_trees_all_close(around(X, Y), around.phi(expected**2))


def test_a_plain_function_is_a_loss_without_residuals():
    loss = losses.as_loss(lambda x, y: jnp.abs(x - y).mean((1, 2)))
    assert loss.residuals is None
    np.testing.assert_allclose(loss(X, Y), losses.l1(X, Y))
    np.testing.assert_allclose(losses.both(X, loss)(X, Y), losses.both(X, losses.l1)(X, Y))
    with pytest.raises(ValueError, match="a loss needs residuals or a call"):
        losses.Loss()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: (x - y) ** 2,
        lambda x, y: ((x - y) ** 2).mean(),
        lambda x, y: (x > y).sum(1),
        lambda x, y: -((x - y) ** 2).mean(1) - 1,
        lambda x, y: {"l2": ((x - y) ** 2).mean(1)},
    ],
    ids=["pixels", "one", "integers", "negative", "dict"],
)
def test_a_loss_that_is_no_distance_of_each_sample_is_refused(loss):
    x = jnp.arange(6.0).reshape(3, 2)
    with pytest.raises(ValueError, match="must give a real number, at least 0, for each of 3 samples, got"):
        losses.each(loss, x, x)
    with pytest.raises(ValueError, match="must give a real number, at least 0, for each of 3 samples, got"):
        losses.both(x, loss)
