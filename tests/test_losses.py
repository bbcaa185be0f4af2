"""Losses: one number a sample, with the scale of a mean."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ld3_jax import losses

X = jnp.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
Y = jnp.asarray([[[1.0, 0.0], [3.0, 0.0]], [[1.0, -1.0], [1.0, -1.0]]])


@pytest.mark.parametrize(("name", "expected"), [("l1", [1.5, 1.0]), ("l2", [5.0, 1.0])])
def test_loss_is_the_mean_of_each_sample(name, expected):
    np.testing.assert_allclose(losses.LOSSES[name](X, Y), expected)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_loss_is_symmetric_and_zero_on_equal_samples(name):
    loss = losses.LOSSES[name]
    np.testing.assert_allclose(loss(X, Y), loss(Y, X))
    np.testing.assert_allclose(loss(X, X), 0.0)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_annotations_refuse_unlike_shapes(name):
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.LOSSES[name](X, Y[:, :1])
