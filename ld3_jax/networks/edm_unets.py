"""The U-Nets of EDM in pixel space: DDPM++ and NCSN++ (`SongUNet`), and ADM (`DhariwalUNet`).

Submodules carry the names of the published PyTorch code, so that its files fill them by one rule; see `weights.fill`.
Dropout and the random dropping of labels act in training only and are left out.

Reference: Karras et al., arXiv:2206.00364; Song et al., arXiv:2011.13456 (DDPM++, NCSN++); Dhariwal and Nichol,
arXiv:2105.05233 (ADM).
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.networks.layers import Conv, GroupNorm, check_labels, decimate, downsample, upsample
from ld3_jax.ranges import check, one_of


class SongUNet(nn.Module):
    """DDPM++, or NCSN++ with Fourier features, a residual encoder and the filter (1, 3, 3, 1).

    Attributes:
        model_channels: the unit of channels.
        channel_mult: channels of each level, from fine to coarse, in that unit.
        num_blocks: residual blocks of a level on the way down; there is one more on the way up.
        attn_resolutions: image sides at which blocks have attention; on the way up, only a level's last block has it.
        embedding_type: of the noise level, "positional" or "fourier".
        encoder_type: "standard", or "residual" to add the downsampled image itself to each coarser level.
        channel_mult_noise: channels of the embedding, in the same unit.
        resample_filter: taps of the filter between levels, an even number of them.
        label_dim: number of classes; 0 for none.
        augment_dim: numbers that tell how a training image was augmented; 0 for none.
        dtype: of the computation inside; parameters, input and output are float32.

    Reference: Song et al., arXiv:2011.13456; Karras et al., arXiv:2206.00364, appendix F.
    """

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: str = "positional"
    encoder_type: str = "standard"
    channel_mult_noise: int = 1
    resample_filter: tuple[int, ...] = (1, 1)
    label_dim: int = 0
    augment_dim: int = 0
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h h channels"],
        noise: Float[Array, ""] | Float[Array, "batch"],
        labels: Float[Array, "batch classes"] | None = None,
        augment: Float[Array, "batch numbers"] | None = None,
    ) -> Float[Array, "batch h h channels"]:
        """The raw output F.

        Args:
            x: scaled images, c_in x; their sides halve once for each level but one.
            noise: c_noise, for all images or for each.
            labels: one-hot classes; None for no class.
            augment: how the images were augmented; None for not at all, as in sampling.

        Raises:
            ValueError: if an attribute is unknown, the sides do not halve, or the labels are of another width.
        """
        check({"embedding_type": self.embedding_type}, {"embedding_type": one_of(("fourier", "positional"))})
        check({"encoder_type": self.encoder_type}, {"encoder_type": one_of(("residual", "standard"))})
        _check_input(self, x, labels)
        taps = self.resample_filter
        block = partial(_Block, eps=1e-6, skip_scale=math.sqrt(0.5), project=True, taps=taps, dtype=self.dtype)
        emb = self._embed(noise, labels, augment)
        sides = f"{x.shape[1]}x{x.shape[2]}"
        h = Conv(self.model_channels, dtype=self.dtype, name=f"enc.{sides}_conv")(x)
        image = x if self.encoder_type == "residual" else None
        h, skips = _encode(self, block, h, emb, image)
        h = _decode(self, block, h, emb, skips, attend_once=True)
        return _output(h, x.shape[-1], 1e-6, norm=f"dec.{sides}_aux_norm", conv=f"dec.{sides}_aux_conv")

    def _embed(self, noise: Array, labels: Array | None, augment: Array | None) -> Array:
        channels, width = self.model_channels * self.channel_mult_noise, 4 * self.model_channels
        if self.embedding_type == "fourier":
            drawn = self.param("map_noise.freqs", nn.initializers.normal(16.0), (channels // 2,), jnp.float32)
            cos, sin = _waves(noise, 2 * math.pi * drawn)
        else:
            cos, sin = _waves(noise, _frequencies(channels // 2, last=channels // 2 - 1))
        emb = jnp.concatenate([sin, cos], -1)
        if self.label_dim:
            one_hot = math.sqrt(self.label_dim) * _or_zeros(labels, self.label_dim)
            emb = emb + nn.Dense(channels, name="map_label")(one_hot)
        if self.augment_dim:
            emb = emb + nn.Dense(channels, use_bias=False, name="map_augment")(_or_zeros(augment, self.augment_dim))
        emb = nn.silu(nn.Dense(width, name="map_layer0")(emb))
        return nn.silu(nn.Dense(width, name="map_layer1")(emb))


class DhariwalUNet(nn.Module):
    """ADM, whose blocks scale and shift by the embedding and whose attention has heads of 64 channels.

    Attributes: as in `SongUNet`; blocks have attention on the way up wherever they have it on the way down.

    Reference: Dhariwal and Nichol, arXiv:2105.05233; Karras et al., arXiv:2206.00364, appendix F.
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    label_dim: int = 0
    augment_dim: int = 0
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h h channels"],
        noise: Float[Array, ""] | Float[Array, "batch"],
        labels: Float[Array, "batch classes"] | None = None,
        augment: Float[Array, "batch numbers"] | None = None,
    ) -> Float[Array, "batch h h channels"]:
        """The raw output F; arguments and errors as in `SongUNet`."""
        _check_input(self, x, labels)
        block = partial(_Block, adaptive_scale=True, head_channels=64, dtype=self.dtype)
        emb = self._embed(noise, labels, augment)
        first = self.model_channels * self.channel_mult[0]
        h = Conv(first, dtype=self.dtype, name=f"enc.{x.shape[1]}x{x.shape[2]}_conv")(x)
        h, skips = _encode(self, block, h, emb)
        h = _decode(self, block, h, emb, skips, attend_once=False)
        return _output(h, x.shape[-1], 1e-5, norm="out_norm", conv="out_conv")

    def _embed(self, noise: Array, labels: Array | None, augment: Array | None) -> Array:
        channels, width = self.model_channels, 4 * self.model_channels
        emb = jnp.concatenate(_waves(noise, _frequencies(channels // 2, last=channels // 2)), -1)
        if self.augment_dim:
            emb = emb + nn.Dense(channels, use_bias=False, name="map_augment")(_or_zeros(augment, self.augment_dim))
        emb = nn.silu(nn.Dense(width, name="map_layer0")(emb))
        emb = nn.Dense(width, name="map_layer1")(emb)
        if self.label_dim:
            emb = emb + nn.Dense(width, use_bias=False, name="map_label")(_or_zeros(labels, self.label_dim))
        return nn.silu(emb)


_Net = SongUNet | DhariwalUNet
_MakeBlock = Callable[..., nn.Module]


def _encode(
    net: _Net, block: _MakeBlock, h: Array, emb: Array, image: Array | None = None
) -> tuple[Array, list[Array]]:
    """The coarsest features and the skip features for the decoder; `image` is the residual encoder's."""
    side, skips = h.shape[1], [h]
    for level, mult in enumerate(net.channel_mult):
        if level:
            side //= 2
            h = block(h.shape[-1], resample=downsample, name=f"enc.{side}x{side}_down")(h, emb)
            if image is not None:
                name, taps = f"enc.{side}x{side}_aux_residual", net.resample_filter
                # All zeros that convolution and filter need surround the image; none are inserted in between.
                around = (len(taps) // 2, len(taps) // 2)
                residual = Conv(h.shape[-1], padding=(around, around), dtype=net.dtype, name=name)(image)
                image = h = (h + decimate(residual, taps)) * math.sqrt(0.5)
            skips.append(h)
        for i in range(net.num_blocks):
            attend = side in net.attn_resolutions
            h = block(net.model_channels * mult, attend=attend, name=f"enc.{side}x{side}_block{i}")(h, emb)
            skips.append(h)
    return h, skips


def _decode(net: _Net, block: _MakeBlock, h: Array, emb: Array, skips: list[Array], attend_once: bool) -> Array:
    side = h.shape[1]
    h = block(h.shape[-1], attend=True, name=f"dec.{side}x{side}_in0")(h, emb)
    h = block(h.shape[-1], name=f"dec.{side}x{side}_in1")(h, emb)
    for level, mult in reversed(list(enumerate(net.channel_mult))):
        for i in range(net.num_blocks + 1):
            h = jnp.concatenate([h, skips.pop()], -1)
            attend = side in net.attn_resolutions and (i == net.num_blocks or not attend_once)
            h = block(net.model_channels * mult, attend=attend, name=f"dec.{side}x{side}_block{i}")(h, emb)
        if level:
            side *= 2
            h = block(h.shape[-1], resample=upsample, name=f"dec.{side}x{side}_up")(h, emb)
    return h


def _output(h: Array, channels: int, eps: float, *, norm: str, conv: str) -> Array:
    # The last layer is small and its rounding goes directly into the result: float32.
    return Conv(channels, name=conv)(nn.silu(_norm(h, eps, jnp.float32, norm)))


class _Block(nn.Module):
    features: int
    resample: Callable[[Array, tuple[int, ...]], Array] | None = None
    attend: bool = False
    eps: float = 1e-5
    skip_scale: float = 1.0
    project: bool = False
    adaptive_scale: bool = False
    head_channels: int | None = None
    taps: tuple[int, ...] = (1, 1)
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h h inputs"], emb: Float[Array, "#batch dim"]) -> Array:
        h = nn.silu(_norm(x, self.eps, self.dtype, "norm0"))
        if self.resample is not None:
            h, x = self.resample(h, self.taps), self.resample(x, self.taps)
        h = Conv(self.features, dtype=self.dtype, name="conv0")(h)
        affine = nn.Dense(self.features * (1 + self.adaptive_scale), dtype=self.dtype, name="affine")(emb)
        affine = jnp.expand_dims(affine, (1, 2))
        if self.adaptive_scale:
            scale, shift = jnp.split(affine, 2, -1)
            h = (1 + scale) * _norm(h, self.eps, self.dtype, "norm1") + shift
        else:
            h = _norm(h + affine, self.eps, self.dtype, "norm1")
        h = Conv(self.features, dtype=self.dtype, name="conv1")(nn.silu(h))
        if x.shape[-1] != self.features or (self.resample is not None and self.project):
            x = Conv(self.features, kernel=1, dtype=self.dtype, name="skip")(x)
        h = self.skip_scale * (x + h)
        return self.skip_scale * (h + self._attention(h)) if self.attend else h

    def _attention(self, h: Array) -> Array:
        batch, rows, columns, channels = h.shape
        qkv = Conv(3 * channels, kernel=1, dtype=self.dtype, name="qkv")(_norm(h, self.eps, self.dtype, "norm2"))
        # The three parts of a channel are next to each other.
        qkv = qkv.reshape(batch, rows * columns, -1, self.head_channels or channels, 3)
        mixed = jax.nn.dot_product_attention(qkv[..., 0], qkv[..., 1], qkv[..., 2])
        return Conv(channels, kernel=1, dtype=self.dtype, name="proj")(mixed.reshape(h.shape))


def _norm(x: Array, eps: float, dtype: jnp.dtype | type, name: str) -> Array:
    return GroupNorm(min(32, x.shape[-1] // 4), epsilon=eps, dtype=dtype, name=name)(x)


def _frequencies(n: int, last: int) -> np.ndarray:
    return (1e4 ** (-np.arange(n) / last)).astype(np.float32)


def _waves(noise: Array, frequencies: Array | np.ndarray) -> tuple[Array, Array]:
    # One row serves the whole batch where the noise level is a scalar.
    angles = jnp.reshape(noise, (-1, 1)) * frequencies.reshape(1, -1)
    return jnp.cos(angles), jnp.sin(angles)


def _or_zeros(numbers: Array | None, width: int) -> Array:
    return jnp.zeros((1, width)) if numbers is None else numbers


def _check_input(net: _Net, x: Array, labels: Array | None) -> None:
    factor = 2 ** (len(net.channel_mult) - 1)
    if x.shape[1] % factor:
        raise ValueError(f"the sides of x must be multiples of {factor}, got {x.shape[1]}")
    check_labels(labels, net.label_dim)
