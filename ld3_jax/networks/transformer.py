"""A diffusion transformer (DiT) for small images: patches as tokens, blocks modulated by noise level and class.

It consists of matrix products alone, which makes it the fastest kind of network on a CPU.

Reference: Peebles and Xie, arXiv:2212.09748; Karras et al., arXiv:2206.00364 (what noise and output mean).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ld3_jax import denoisers
from ld3_jax.networks import files, weights
from ld3_jax.networks.layers import check_labels
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO, check
from ld3_jax.schedules import VELinear

SCHEDULE = VELinear()
_KIND = "transformer"
_CONFIG = {"width": COUNT, "depth": COUNT, "patch": COUNT, "label_dim": COUNT_OR_ZERO, "size": COUNT, "channels": COUNT}
_HEAD = 32  # channels of an attention head
_ZEROS = nn.initializers.zeros


class DiffusionTransformer(nn.Module):
    """The raw network F of EDM's denoiser.

    Attributes:
        width: channels of a token, a multiple of 32.
        depth: number of blocks.
        patch: side of a patch in pixels.
        label_dim: number of classes; 0 for none.
        dtype: of the computation inside; parameters, input and output are float32.
    """

    width: int = 128
    depth: int = 6
    patch: int = 4
    label_dim: int = 0
    dtype: jnp.dtype | type = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w channels"],
        noise: Float[Array, ""] | Float[Array, "batch"],
        labels: Float[Array, "batch classes"] | None = None,
    ) -> Float[Array, "batch h w channels"]:
        """The raw output F.

        Args:
            x: scaled images, c_in x.
            noise: c_noise, for all images or for each.
            labels: one-hot classes; zeros, or None, for no class.

        Raises:
            ValueError: if the width is no multiple of 32, the sides are none of the patch, or the labels are of another
                width.
        """
        batch, height, width, channels = x.shape
        p = self.patch
        if self.width % _HEAD:
            raise ValueError(f"the width of the network must be a multiple of {_HEAD}, got {self.width}")
        if height % p or width % p:
            raise ValueError(f"the sides of x must be multiples of {p}, got {height} and {width}")
        check_labels(labels, self.label_dim)
        rows, columns = height // p, width // p
        patches = x.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3).reshape(batch, rows * columns, -1)
        position = self.param("position", nn.initializers.normal(0.02), (rows * columns, self.width), jnp.float32)
        tokens = nn.Dense(self.width, name="patches_in")(patches) + position[None]
        emb = self._embed(noise, labels)
        for i in range(self.depth):
            tokens = _Block(self.dtype, name=f"block{i}")(tokens, emb)
        scale, shift = jnp.split(nn.Dense(2 * self.width, kernel_init=_ZEROS, name="modulation")(emb)[:, None], 2, -1)
        tokens = _norm(tokens) * (1 + scale) + shift
        patches = nn.Dense(p * p * channels, kernel_init=_ZEROS, name="patches_out")(tokens)
        return patches.reshape(batch, rows, columns, p, p, channels).swapaxes(2, 3).reshape(x.shape)

    def _embed(self, noise: Array, labels: Array | None) -> Array:
        frequencies = jnp.exp(jnp.linspace(0.0, math.log(100.0), self.width // 2)).reshape(1, -1)
        angles = jnp.reshape(noise, (-1, 1)) * frequencies
        emb = nn.Dense(self.width, name="noise_in")(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
        if labels is not None:
            emb = emb + nn.Dense(self.width, use_bias=False, name="labels_in")(math.sqrt(self.label_dim) * labels)
        return nn.silu(nn.Dense(self.width, name="embedding")(nn.silu(emb)))


class _Block(nn.Module):
    dtype: jnp.dtype | type

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch n width"], emb: Float[Array, "#batch width"]) -> Array:
        width = tokens.shape[-1]
        modulation = nn.Dense(6 * width, kernel_init=_ZEROS, name="modulation")(emb)[:, None]
        scale0, shift0, gate0, scale1, shift1, gate1 = jnp.split(modulation, 6, -1)
        h = (_norm(tokens) * (1 + scale0) + shift0).astype(self.dtype)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], -1, 3 * _HEAD), 3, -1)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
        tokens = tokens + gate0 * nn.Dense(width, dtype=self.dtype, name="proj")(mixed)
        h = (_norm(tokens) * (1 + scale1) + shift1).astype(self.dtype)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="mlp_in")(h))
        return tokens + gate1 * nn.Dense(width, dtype=self.dtype, name="mlp_out")(h)


def _norm(tokens: Array) -> Array:
    return nn.LayerNorm(use_scale=False, use_bias=False)(tokens.astype(jnp.float32))


@dataclass(frozen=True)
class Network:
    """A network and the images that it is for.

    Attributes:
        module: the network.
        size: side of the images in pixels.
        channels: of the images.
    """

    module: DiffusionTransformer
    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image."""
        return self.size, self.size, self.channels


def initial(network: Network, key: PRNGKeyArray) -> PyTree:
    """The parameters that training begins with."""
    return jax.jit(network.module.init)(key, *_example(network))["params"]


def model(network: Network, params: PyTree) -> denoisers.Denoiser:
    """The noise prediction eps of a network with these parameters; its time is the noise level, see `VELinear`."""
    raw = denoisers.edm_preconditioned(Partial(network.module.apply, {"params": params}))
    return denoisers.to_noise(raw, SCHEDULE, "data")


def write(path: Path, network: Network, params: PyTree) -> None:
    """Write a network as safetensors, in half precision.

    Raises:
        OSError: if it cannot be written to the disk.
    """
    module = network.module
    config = {"width": module.width, "depth": module.depth, "patch": module.patch, "label_dim": module.label_dim}
    config |= {"size": network.size, "channels": network.channels}
    state = {name: array.astype(np.float16) for name, array in weights.published(params).items()}
    files.write(path, files.Checkpoint(_KIND, state, config), {})


def read(path: Path, dtype: jnp.dtype | type = jnp.float32) -> tuple[Network, PyTree]:
    """A network that `write` wrote, and its parameters.

    Args:
        path: the file.
        dtype: of the computation inside the network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another network; the message names the file.
    """
    checkpoint = files.read(path)
    if checkpoint.kind != _KIND:
        raise ValueError(f"{path}: not a network of experiments.pretrain, but of the kind {checkpoint.kind!r:.100}")
    try:
        config = check({name: checkpoint.config.get(name) for name in _CONFIG}, _CONFIG)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    size, channels = config.pop("size"), config.pop("channels")
    network = Network(DiffusionTransformer(**config, dtype=dtype), size, channels)
    shapes = weights.abstract(network.module, *_example(network))
    return network, weights.fill(shapes, checkpoint.state, str(path))


def _example(network: Network) -> tuple[Array, Array, Array]:
    return jnp.zeros((1, *network.shape)), jnp.zeros(()), jnp.zeros((1, network.module.label_dim))
