"""Layers of the U-Nets: values and derivatives of every kind equal the plain forms."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ld3_jax.networks import layers

WINDOWS = [
    (3, (1, 1), ((1, 1), (1, 1))),
    (3, (2, 2), ((0, 1), (0, 1))),
    (3, (1, 2), ((2, 0), (1, 1))),
    (1, (1, 1), ((0, 0), (0, 0))),
    (8, (2, 1), ((1, 2), (3, 0))),  # larger than the image
]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


TRANSFORMS = {
    "reverse": lambda f, x, k: jax.grad(f, (0, 1))(x[0], k[0]),
    "reverse of a batch": lambda f, x, k: jax.vmap(jax.grad(f, (0, 1)), (0, None))(x, k[0]),
    "batch of kernels": lambda f, x, k: jax.vmap(f, (None, 0))(x[0], k),
    "batch of tangents": lambda f, x, k: jax.vmap(lambda v: jax.jvp(f, (x[0], k[0]), (v, k[1]))[1])(x),
    "forward over reverse": lambda f, x, k: jax.jvp(jax.grad(f), (x[0], k[0]), (x[1], k[1]))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(("side", "strides", "padding"), WINDOWS)
def test_a_convolution_has_all_derivatives_of_the_plain_one(side, strides, padding, transform, float64):
    x, kernels = draw(3, 2, 6, 7, 2), draw(3, side, side, 2, 3, seed=1)

    @partial(jax.jit, static_argnums=0)
    def derivative(convolve, x, kernels):
        return transform(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, strides, padding))), x, kernels)

    ours, theirs = (jax.tree.leaves(derivative(convolve, x, kernels)) for convolve in (layers.convolution, plain))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_gradient_in_a_scan_is_a_convolution_in_the_form_that_a_cpu_has_a_kernel_for():
    def steps(x, kernel):
        return jnp.sum(
            lax.scan(lambda x, _: (layers.convolution(x, kernel, padding=((1, 1), (1, 1))), None), x, length=2)[0]
        )

    lowered = jax.jit(jax.grad(steps)).lower(jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))).as_text()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 1
    assert all("[0, 1, i, o]" in line for line in convolutions)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, None), (1, 1, None), (3, 2, ((0, 1), (0, 1)))])
def test_the_layer_is_flax_s(kernel, stride, padding):
    x = draw(2, 6, 6, 3).astype(jnp.float32)
    around = (kernel // 2, kernel // 2)
    theirs = nn.Conv(4, (kernel, kernel), stride, padding or (around, around))
    ours = layers.Conv(4, kernel, stride, padding)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: draw(*leaf.shape).astype(leaf.dtype), shapes)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(ours.init, jax.random.key(0), x) == shapes
    halved = layers.Conv(4, dtype=jnp.bfloat16)
    assert jax.eval_shape(halved.init_with_output, jax.random.key(0), x)[0].dtype == jnp.bfloat16


def test_group_norm_is_flax_s_in_value_and_gradient(float64):
    # A mean far from zero shows that the variance is not a difference of large numbers.
    x, scale, bias = 30 + draw(2, 5, 4, 12), draw(12, seed=1), draw(12, seed=2)
    variables = {"params": {"scale": scale, "bias": bias}}
    theirs = nn.GroupNorm(3, epsilon=1e-3, use_fast_variance=False)
    ours = layers.GroupNorm(3, epsilon=1e-3)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradient(norm):
        return norm.apply(variables, x), jax.grad(lambda x: jnp.sum(jnp.sin(norm.apply(variables, x))))(x)

    # Ours computes in float32.
    for mine, other in zip(value_and_gradient(ours), value_and_gradient(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="10 channels do not divide into 4 groups"):
        layers.GroupNorm(4, epsilon=1e-5).init(jax.random.key(0), jnp.ones((1, 2, 2, 10)))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_is_a_strided_filter_and_its_transpose(taps, float64):
    x, margin = draw(2, 6, 4, 3), len(taps) // 2 - 1
    window = np.outer(taps, taps) / sum(taps) ** 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window.shape, (1, 2))[:, ::2, ::2]
    half = layers.downsample(x, taps)
    np.testing.assert_allclose(half, np.einsum("bhwcij,ij->bhwc", windows, window), atol=1e-12)
    np.testing.assert_allclose(layers.decimate(jnp.asarray(padded), taps), half, atol=1e-12)
    other = draw(*half.shape, seed=1)
    np.testing.assert_allclose(jnp.vdot(layers.upsample(other, taps), x), 4 * jnp.vdot(other, half), rtol=1e-12)


def test_the_shortest_filter_averages_and_repeats():
    x = draw(1, 4, 4, 2).astype(jnp.float32)
    np.testing.assert_allclose(layers.downsample(x, (1, 1)), x.reshape(1, 2, 2, 2, 2, 2).mean((2, 4)), rtol=1e-5)
    np.testing.assert_array_equal(layers.upsample(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
