"""The first stages of latent diffusion: images to latents and back, with a Gaussian or a quantised latent.

Reference: Rombach et al., arXiv:2112.10752; Esser et al., arXiv:2012.09841 (VQGAN); van den Oord et al.,
arXiv:1711.00937 (vector quantisation).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax.networks.layers import Conv, GroupNorm


class Autoencoder(nn.Module):
    """An image's latent, and a latent's image.

    Images are NHWC, nominally in [-1, 1], and `factor` times as large as their latents. Submodules carry the names
    of the published PyTorch code.

    Attributes:
        channels: channels of the finest level; a multiple of 32, the number of groups of the norms.
        channel_mult: channels of each level, from fine to coarse, in units of `channels`.
        latent_channels: channels of a latent.
        codes: number of vectors to which a latent's pixels are rounded before decoding; None if they are not rounded,
            and then the encoder gives a Gaussian.
        num_res_blocks: residual blocks of a level of the encoder; the decoder's have one more.
        dtype: of the computation inside; parameters, input and output are float32.
    """

    channels: int
    channel_mult: tuple[int, ...]
    latent_channels: int
    codes: int | None = None
    num_res_blocks: int = 2
    dtype: jnp.dtype | type = jnp.float32

    @property
    def factor(self) -> int:
        """Side of an image over side of its latent."""
        return 2 ** (len(self.channel_mult) - 1)

    def setup(self) -> None:
        moments = 1 if self.codes else 2
        shape = self.channels, self.channel_mult, self.num_res_blocks
        self.encoder = Encoder(*shape, moments * self.latent_channels, self.dtype)
        self.quant_conv = nn.Dense(moments * self.latent_channels)
        if self.codes:
            self.quantize = Codebook(self.codes, self.latent_channels)
        self.post_quant_conv = nn.Dense(self.latent_channels)
        self.decoder = Decoder(*shape, self.dtype)

    def __call__(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch h w 3"]:
        """The images after encoding and decoding."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch h2 w2 latent"]:
        """Images to latents: the mean of the Gaussian, or the latents before they are rounded.

        Raises:
            ValueError: if the images' sides do not halve once for each level but one.
        """
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(f"the sides of the images must be multiples of {self.factor}, got {height} x {width}")
        return self.quant_conv(self.encoder(images))[..., : self.latent_channels]

    def decode(self, latents: Float[Array, "batch h w latent"]) -> Float[Array, "batch h2 w2 3"]:
        """Latents to images. Gradients pass through the rounding as if it were not there."""
        if self.codes:
            latents = self.quantize(latents)
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nn.Module):
    """Convolutions from an image to `features` channels per pixel of the latent; attributes as `Autoencoder`'s."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    features: int
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch h2 w2 features"]:
        h = Conv(self.channels, dtype=self.dtype, name="conv_in")(images)
        for level, mult in enumerate(self.channel_mult):
            for i in range(self.num_res_blocks):
                h = _ResBlock(mult * self.channels, self.dtype, name=f"down.{level}.block.{i}")(h)
            if level + 1 < len(self.channel_mult):
                # The published code pads only below and to the right.
                name, around = f"down.{level}.downsample.conv", ((0, 1), (0, 1))
                h = Conv(h.shape[-1], stride=2, padding=around, dtype=self.dtype, name=name)(h)
        return _to_output(_middle(h, self.dtype), self.features)


class Decoder(nn.Module):
    """Convolutions from a latent to its image; attributes as `Autoencoder`'s."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "batch h w latent"]) -> Float[Array, "batch h2 w2 3"]:
        h = Conv(self.channel_mult[-1] * self.channels, dtype=self.dtype, name="conv_in")(latents)
        h = _middle(h, self.dtype)
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = _ResBlock(mult * self.channels, self.dtype, name=f"up.{level}.block.{i}")(h)
            if level > 0:
                h = h.repeat(2, axis=1).repeat(2, axis=2)
                h = Conv(h.shape[-1], dtype=self.dtype, name=f"up.{level}.upsample.conv")(h)
        return _to_output(h, 3)


class Codebook(nn.Module):
    """The vectors that a quantised latent is made of.

    Attributes:
        codes: how many there are.
        features: channels of each.
    """

    codes: int
    features: int

    @nn.compact
    def __call__(self, latents: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        """The nearest vector of each pixel, argmin |z - e|^2; the gradient is the identity."""
        embedding = nn.Embed(self.codes, self.features, name="embedding")
        codes = embedding.embedding
        # |z|^2 is the same for every code. Less than full precision would pick other codes.
        products = jnp.einsum("bhwf,cf->bhwc", latents, codes, precision=jax.lax.Precision.HIGHEST)
        nearest = jnp.argmin(jnp.sum(codes**2, -1).reshape(1, 1, 1, -1) - 2 * products, -1)
        return latents + jax.lax.stop_gradient(embedding(nearest) - latents)


class _ResBlock(nn.Module):
    features: int
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h w features"]:
        h = nn.silu(GroupNorm(32, epsilon=1e-6, dtype=self.dtype, name="norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm(32, epsilon=1e-6, dtype=self.dtype, name="norm2")(h))
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class _Attention(nn.Module):
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        batch, height, width, channels = x.shape
        h = GroupNorm(32, epsilon=1e-6, dtype=self.dtype, name="norm")(x).reshape(batch, height * width, 1, channels)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        h = nn.Dense(channels, dtype=self.dtype, name="proj_out")(jax.nn.dot_product_attention(q, k, v))
        return x + h.reshape(x.shape)


def _middle(h: Array, dtype: jnp.dtype | type) -> Array:
    h = _ResBlock(h.shape[-1], dtype, name="mid.block_1")(h)
    h = _Attention(dtype, name="mid.attn_1")(h)
    return _ResBlock(h.shape[-1], dtype, name="mid.block_2")(h)


def _to_output(h: Array, features: int) -> Array:
    # The last layer is small and its rounding goes directly into the result.
    h = nn.silu(GroupNorm(32, epsilon=1e-6, name="norm_out")(h.astype(jnp.float32)))
    return Conv(features, name="conv_out")(h)
