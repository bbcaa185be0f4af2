"""The first stages: parity with the published code's output and with diffusers, quantisation, precision, refusals."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from ld3_jax.networks import layouts, weights
from ld3_jax.networks.autoencoder import Autoencoder, Codebook, Decoder

GOLDEN = Path(__file__).parent / "golden" / "ldm_kl_decoder.npz"
SMALL = Autoencoder(channels=32, channel_mult=(1, 2), latent_channels=4, num_res_blocks=1)
KINDS = {"gaussian": (SMALL, AutoencoderKL), "quantised": (SMALL.clone(codes=16), VQModel)}


@partial(jax.jit, static_argnums=(0, 3))
def output(module, params, x, method="__call__"):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, x, method=method)


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def published(kind):
    """A diffusers first stage with every parameter moved, for the norms start as the identity."""
    settings = {} if kind is AutoencoderKL else {"num_vq_embeddings": 16}
    network = kind(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        **settings,
    )
    generator = torch.manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval(), {name: array.numpy() for name, array in network.state_dict().items()}


def test_the_published_codes_output_is_reproduced():
    decoder = Decoder(channels=32, channel_mult=(1, 2), num_res_blocks=1)
    with np.load(GOLDEN) as golden:
        z, theirs = channels_last(golden["z"]), golden["out"]
        state = {name.removeprefix("state/"): golden[name] for name in golden.files if name.startswith("state/")}
    params = weights.fill(weights.abstract(decoder, z), state, "golden")
    ours = np.moveaxis(output(decoder, params, z), -1, 1)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_diffusers(kind):
    autoencoder, network = KINDS[kind]
    network, state = published(network)
    state = layouts.from_diffusers_autoencoder(state, autoencoder)
    shapes = weights.abstract(autoencoder, jnp.zeros((1, 2, 2, 3)))
    params = weights.fill(shapes, state, "diffusers", prefix="first_stage_model.")
    generator = torch.manual_seed(3)
    images, z = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        encoded = network.encode(images)
        latents = encoded.latents if autoencoder.codes else encoded.latent_dist.mean
        theirs = {"encode": latents.numpy(), "decode": network.decode(z).sample.numpy()}
    for method, x in (("encode", images), ("decode", z)):
        ours = output(autoencoder, params, channels_last(x.numpy()), method)
        difference = np.moveaxis(ours, -1, 1) - theirs[method]
        assert np.abs(difference).max() < 1e-4 * np.abs(theirs[method]).max(), method


def test_names_of_diffusers_first_versions_are_read():
    _, state = published(AutoencoderKL)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    old_state = {renamed(name): array for name, array in state.items()}
    assert old_state.keys() != state.keys()
    ours, theirs = (layouts.from_diffusers_autoencoder(given, SMALL) for given in (old_state, state))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)


def test_latents_are_rounded_to_the_nearest_code_and_gradients_pass():
    codes = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    def rounded(z):
        return Codebook(16, 3).apply({"params": {"embedding": {"embedding": codes}}}, z)

    nearest = np.argmin(np.sum((np.asarray(z)[..., None, :] - codes) ** 2, -1), -1)
    np.testing.assert_allclose(rounded(z), codes[nearest], atol=1e-6)
    direction = jax.random.normal(jax.random.key(1), z.shape)
    np.testing.assert_array_equal(jax.vjp(rounded, z)[1](direction)[0], direction)


def test_bfloat16_inside_is_near_float32():
    z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    params = weights.random(weights.abstract(SMALL, jnp.zeros((1, 2, 2, 3))))
    exact, rounded = (output(SMALL.clone(dtype=dtype), params, z, "decode") for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    assert 1e-4 < jnp.abs(rounded - exact).max() / jnp.abs(exact).max() < 5e-2


def test_images_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="multiples of 2, got 16 x 15"):
        weights.abstract(SMALL, jnp.zeros((1, 16, 15, 3)))
