"""The U-Net of latent diffusion, with self-attention or, if there is a context, spatial transformers.

Reference: Rombach et al., arXiv:2112.10752; Dhariwal and Nichol, arXiv:2105.05233 (the U-Net); Vaswani et al.,
arXiv:1706.03762 (attention); Shazeer, arXiv:2002.05202 (GEGLU).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.networks.layers import Conv, GroupNorm

_MAX_PERIOD = 10_000.0


class UNet(nn.Module):
    """A prediction about the noise in a latent, in the shape of the latent.

    Submodules have the names of the published PyTorch code. Where one published file has a 1 x 1 convolution and
    another has a matrix, this has a matrix, and both can be read.

    Attributes:
        out_channels: channels of the prediction, as many as the latent has.
        model_channels: channels of the finest level; a multiple of 32, the number of groups of the norms.
        channel_mult: channels of each level, from fine to coarse, in units of `model_channels`.
        attention_resolutions: the levels that have attention, by the factor 2^level by which they are coarser.
        num_res_blocks: residual blocks of a level on the way down; there is one more on the way up.
        num_heads: heads of each attention, if `num_head_channels` is None.
        num_head_channels: channels of each head; the number of heads follows.
        context_dim: channels of the context's tokens, for spatial transformers; None for plain self-attention.
        transformer_depth: transformer blocks in each spatial transformer.
        new_attention_order: self-attention's projection holds all queries, then all keys, then all values; by default,
            as in the published files, the queries, keys and values of the first head, then of the second head, and so
            on.
        dtype: of the computation inside; parameters, input and output are float32.
    """

    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_res_blocks: int = 2
    num_heads: int = 1
    num_head_channels: int | None = None
    context_dim: int | None = None
    transformer_depth: int = 1
    new_attention_order: bool = False
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        t: Float[Array, ""] | Float[Array, "batch"],
        context: Float[Array, "batch tokens dim"] | None = None,
    ) -> Float[Array, "batch h w out"]:
        """The network's prediction for noisy latents.

        Args:
            x: noisy latents, with sides that halve once for each level but one.
            t: time on the scale of the training steps, 0 to 999, for all latents or for each.
            context: the condition of the latents, if the network has a `context_dim`.

        Returns:
            The prediction, float32.

        Raises:
            ValueError: if the sides do not halve, or the context is missing, unexpected or of another width.
        """
        self._check(x, context)
        emb = nn.Dense(4 * self.model_channels, dtype=self.dtype, name="time_embed.0")(self._times(t))
        emb = nn.Dense(4 * self.model_channels, dtype=self.dtype, name="time_embed.2")(nn.silu(emb))
        h = Conv(self.model_channels, dtype=self.dtype, name="input_blocks.0.0")(x)
        skips = [h]
        for level in range(len(self.channel_mult)):
            for _ in range(self.num_res_blocks):
                h = self._block(h, emb, context, level, f"input_blocks.{len(skips)}")
                skips.append(h)
            if level + 1 < len(self.channel_mult):
                h = Conv(h.shape[-1], stride=2, dtype=self.dtype, name=f"input_blocks.{len(skips)}.0.op")(h)
                skips.append(h)
        h = _ResBlock(h.shape[-1], self.dtype, name="middle_block.0")(h, emb)
        h = self._attend(h, context, "middle_block.1")
        h = _ResBlock(h.shape[-1], self.dtype, name="middle_block.2")(h, emb)
        blocks = 0
        for level in reversed(range(len(self.channel_mult))):
            for last in [False] * self.num_res_blocks + [level > 0]:
                name = f"output_blocks.{blocks}"
                h = self._block(jnp.concatenate([h, skips.pop()], -1), emb, context, level, name)
                if last:
                    h = h.repeat(2, axis=1).repeat(2, axis=2)
                    h = Conv(h.shape[-1], dtype=self.dtype, name=f"{name}.{2 if self.attends(level) else 1}.conv")(h)
                blocks += 1
        # The last layer is small and its rounding goes directly into the result.
        h = nn.silu(GroupNorm(32, epsilon=1e-5, name="out.0")(h.astype(jnp.float32)))
        return Conv(self.out_channels, name="out.2")(h)

    def heads(self, channels: int) -> int:
        """The number of heads of an attention over this many channels."""
        return self.num_heads if self.num_head_channels is None else channels // self.num_head_channels

    def attends(self, level: int) -> bool:
        """Whether a level has attention; the finest level is 0."""
        return 2**level in self.attention_resolutions

    def _times(self, t: Array) -> Array:
        half = self.model_channels // 2
        frequencies = np.exp(-math.log(_MAX_PERIOD) * np.arange(half) / half).astype(np.float32)
        # One row serves the whole batch if the time is a scalar.
        angles = jnp.reshape(t, (-1, 1)) * frequencies.reshape(1, -1)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

    def _block(self, h: Array, emb: Array, context: Array | None, level: int, name: str) -> Array:
        h = _ResBlock(self.channel_mult[level] * self.model_channels, self.dtype, name=f"{name}.0")(h, emb)
        return self._attend(h, context, f"{name}.1") if self.attends(level) else h

    def _attend(self, h: Array, context: Array | None, name: str) -> Array:
        heads = self.heads(h.shape[-1])
        if context is None:
            return _SelfAttention(heads, self.new_attention_order, self.dtype, name=name)(h)
        return _SpatialTransformer(heads, self.transformer_depth, self.dtype, name=name)(h, context)

    def _check(self, x: Array, context: Array | None) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"the sides of x must be multiples of {factor}, got {x.shape[1]} x {x.shape[2]}")
        dim = None if context is None else context.shape[-1]
        if dim != self.context_dim:
            raise ValueError(f"context must have {self.context_dim} channels (None: no context), got {dim}")


class _ResBlock(nn.Module):
    features: int
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w inputs"], emb: Float[Array, "#batch dim"]) -> Array:
        h = nn.silu(GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name="in_layers.0")(x))
        h = Conv(self.features, dtype=self.dtype, name="in_layers.2")(h)
        emb = nn.Dense(self.features, dtype=self.dtype, name="emb_layers.1")(nn.silu(emb))
        h = h + jnp.expand_dims(emb, (1, 2))
        h = nn.silu(GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name="out_layers.0")(h))
        h = Conv(self.features, dtype=self.dtype, name="out_layers.3")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip_connection")(x)
        return x + h


class _SelfAttention(nn.Module):
    heads: int
    new_order: bool
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        batch, height, width, channels = x.shape
        h = GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        if self.new_order:
            q, k, v = (_split_heads(part, self.heads) for part in jnp.split(qkv, 3, -1))
        else:
            q, k, v = jnp.split(_split_heads(qkv, self.heads), 3, -1)
        h = jax.nn.dot_product_attention(q, k, v).reshape(batch, height * width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)


class _SpatialTransformer(nn.Module):
    heads: int
    depth: int
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], context: Float[Array, "batch tokens dim"]) -> Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(32, epsilon=1e-6, dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        for i in range(self.depth):
            h = _TransformerBlock(self.heads, self.dtype, name=f"transformer_blocks.{i}")(h, context)
        return x + nn.Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)


class _TransformerBlock(nn.Module):
    heads: int
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch n c"], context: Float[Array, "batch tokens dim"]) -> Array:
        h = self._norm(x, "norm1")
        x = x + _CrossAttention(self.heads, self.dtype, name="attn1")(h, h)
        x = x + _CrossAttention(self.heads, self.dtype, name="attn2")(self._norm(x, "norm2"), context)
        h = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="ff.net.0.proj")(self._norm(x, "norm3"))
        h, gate = jnp.split(h, 2, -1)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="ff.net.2")(h * nn.gelu(gate, approximate=False))

    def _norm(self, x: Array, name: str) -> Array:
        return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(x)


class _CrossAttention(nn.Module):
    heads: int
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, x: Float[Array, "batch n c"], context: Float[Array, "batch tokens dim"]) -> Array:
        def project(tokens: Array, name: str) -> Array:
            dense = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)
            return _split_heads(dense(tokens), self.heads)

        h = jax.nn.dot_product_attention(project(x, "to_q"), project(context, "to_k"), project(context, "to_v"))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out.0")(h.reshape(x.shape))


def _split_heads(tokens: Array, heads: int) -> Array:
    return tokens.reshape(*tokens.shape[:2], heads, -1)
