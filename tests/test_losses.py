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
    np.testing.assert_allclose(losses.LOSSES[name](X, Y), expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_loss_is_symmetric_and_zero_on_equal_samples(name):
    loss = losses.LOSSES[name]
    np.testing.assert_allclose(loss(X, Y), loss(Y, X))
    np.testing.assert_allclose(loss(X, X), 0.0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_the_gradient_is_finite_where_samples_are_equal(name):
    chex.assert_tree_all_finite(jax.grad(lambda x: losses.LOSSES[name](x, X).sum())(X))


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_the_loss_of_a_pytree_is_that_of_all_its_numbers(name):
    parts = ({"a": samples[:, 0], "b": (samples[:, 1:, 0], samples[:, 1:, 1])} for samples in (X, Y))
    np.testing.assert_allclose(losses.LOSSES[name](*parts), losses.LOSSES[name](X, Y), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_the_annotations_refuse_unlike_shapes(name):
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.LOSSES[name](X, Y[:, :1])
    with pytest.raises(ValueError, match="samples and targets must have the same shapes, got"):
        losses.least_squares(losses.l2).residuals(X, Y[:, :1])


@pytest.mark.parametrize("loss", [losses.l2, losses.rmse, Partial(losses.l2)], ids=["l2", "rmse", "partial"])
def test_a_loss_of_squares_is_phi_of_the_sum_of_its_squared_residuals(loss):
    residuals, phi = losses.least_squares(loss)
    squares = sum(jnp.sum(part**2, -1) for part in residuals(X, Y))
    np.testing.assert_allclose(jax.vmap(phi)(squares), loss(X, Y), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.l1, Partial(losses.l1), lambda x, y: losses.l2(x, y)])
def test_another_loss_is_no_loss_of_squares(loss):
    allowed = r"\('both', 'inception', 'l2', 'lpips', 'rmse'\)"
    with pytest.raises(ValueError, match=rf"GaussNewton.* {allowed}; GradientDescent .* got"):
        losses.least_squares(loss)


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
