"""The latent-diffusion U-Net: parity with the published code's output and with diffusers, precision, refusals."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from ld3_jax.networks import layouts, weights
from ld3_jax.networks.unet import UNet

GOLDEN = Path(__file__).parent / "golden" / "ldm_unet_uncond.npz"
SMALL = UNet(out_channels=4, model_channels=32, channel_mult=(1, 2), attention_resolutions=(2,), num_res_blocks=1)


WITH_CONTEXT = SMALL.clone(num_heads=4, context_dim=24)
ONE_LEVEL = WITH_CONTEXT.clone(channel_mult=(2,), attention_resolutions=())  # a transformer in the middle


@partial(jax.jit, static_argnums=0)
def output(unet, params, *inputs):
    with jax.default_matmul_precision("highest"):
        return unet.apply({"params": params}, *inputs)


def inputs(unet):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 8, 8, unet.out_channels), np.float32), np.float32([801.0, 13.5])
    return (x, t) if unet.context_dim is None else (x, t, rng.standard_normal((2, 5, unet.context_dim), np.float32))


@pytest.fixture(scope="module")
def one_level():
    given = tuple(map(jnp.asarray, inputs(ONE_LEVEL)))
    return weights.random(weights.abstract(ONE_LEVEL, *given)), *given


def published(network):
    """A diffusers network with every parameter moved, for the norms start as the identity."""
    generator = torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval(), {name: array.numpy() for name, array in network.state_dict().items()}


def assert_parity(unet, network):
    network, state = published(network)
    x, t, *context = given = inputs(unet)
    with torch.no_grad():
        theirs = network(*map(torch.tensor, (np.moveaxis(x, -1, 1), t, *context))).sample.numpy()
    state = layouts.from_diffusers_unet(state, unet)
    shapes = weights.abstract(unet, *map(jnp.asarray, given))
    ours = output(unet, weights.fill(shapes, state, "diffusers", prefix="model.diffusion_model."), *given)
    assert np.abs(np.moveaxis(ours, -1, 1) - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_the_published_codes_output_is_reproduced():
    unet = UNet(3, 32, (1, 2), (1, 2), num_res_blocks=1, num_head_channels=16)
    with np.load(GOLDEN) as golden:
        x, t = jnp.asarray(np.moveaxis(golden["x"], 1, -1)), jnp.asarray(golden["t"])
        state = {name.removeprefix("state/"): golden[name] for name in golden.files if name.startswith("state/")}
        theirs = golden["out"]
    params = weights.fill(weights.abstract(unet, x, t), state, "golden")
    ours = np.moveaxis(output(unet, params, x, t), -1, 1)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_parity_with_diffusers_on_a_context():
    network = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,  # the number of heads, whatever its name
        transformer_layers_per_block=2,
    )
    assert_parity(WITH_CONTEXT.clone(transformer_depth=2), network)


@pytest.mark.parametrize("new_attention_order", [False, True])
def test_parity_with_diffusers_without_context(new_attention_order):
    unet = SMALL.clone(out_channels=3, num_head_channels=16, new_attention_order=new_attention_order)
    network = UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=16,
    )
    assert_parity(unet, network)


def test_a_scalar_time_is_the_time_of_every_latent(one_level):
    params, x, _, context = one_level
    one, each = (output(ONE_LEVEL, params, x, t, context) for t in (jnp.float32(30.5), jnp.full(2, 30.5)))
    np.testing.assert_allclose(one, each, rtol=1e-4, atol=1e-5)
    assert jnp.abs(output(ONE_LEVEL, params, x, jnp.float32(500), context) - one).max() > 1e-2


def test_bfloat16_inside_is_near_float32(one_level):
    params, *given = one_level
    exact, rounded = (output(ONE_LEVEL.clone(dtype=dtype), params, *given) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    assert 1e-4 < jnp.abs(rounded - exact).max() / jnp.abs(exact).max() < 5e-2


@pytest.mark.parametrize(
    ("unet", "x", "context", "message"),
    [
        (SMALL, (1, 8, 7, 4), None, "multiples of 2, got 8 x 7"),
        (SMALL, (1, 8, 8, 4), (1, 3, 24), "None channels .*got 24"),
        (SMALL.clone(context_dim=24), (1, 8, 8, 4), None, "24 channels .*got None"),
        (SMALL.clone(context_dim=24), (1, 8, 8, 4), (1, 3, 16), "24 channels .*got 16"),
    ],
)
def test_wrong_inputs_are_refused(unet, x, context, message):
    with pytest.raises(ValueError, match=message):
        weights.abstract(unet, jnp.zeros(x), jnp.zeros(()), None if context is None else jnp.zeros(context))
