"""MLP-Mixer score networks of galaxy images, with the weights that the package galaxygrad ships.

Nine networks trained on single-band images of the surveys HSC, ZTF, LSST and Roman and of gravitationally lensed
quasars. An image holds `log(flux + 1) / 0.1`. The schedule is variance preserving with beta = 1 on t in [0, 10]:
alpha = exp(-t / 2), sigma^2 = 1 - exp(-t).

Reference: Sampson et al., arXiv:2401.07313; Tolstikhin et al., arXiv:2105.01601 (MLP-Mixer).
"""

from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax import denoisers
from ld3_jax.networks import files
from ld3_jax.schedules import NoiseSchedule, VPLinear

_PATCH, _HIDDEN = 4, 64  # side of a patch in pixels; channels of its token
_MIX, _BLOCKS = 512, 4  # width of the mixing layers; how many blocks mix
_T_SCALE = 10.0  # the network gets t / 10 as an additional channel


@dataclass(frozen=True)
class Survey:
    """A published network: the file that holds its weights, and the side of its square images in pixels."""

    file: str
    size: int


SURVEYS = {
    "hsc32": Survey("eqx_hsc_ScoreNet32.eqx", 32),
    "hsc64": Survey("eqx_hsc_ScoreNet64.eqx", 64),
    "hsc_log32": Survey("eqx_hsc_LogNet32.eqx", 32),
    "hsc_log64": Survey("eqx_hsc_LogNet64.eqx", 64),
    "ztf32": Survey("eqx_ZTF_ScoreNet32.eqx", 32),
    "ztf64": Survey("eqx_ZTF_ScoreNet64.eqx", 64),
    "lsst60": Survey("eqx_lsst_ScoreNet60.eqx", 60),
    "quasar72": Survey("eqx_quasar_lens72.eqx", 72),
    "roman120": Survey("eqx_roman_Scorenet120.eqx", 120),
}


class _MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, tokens: Float[Array, "batch patch hidden"]) -> Float[Array, "batch patch hidden"]:
        _, patches, hidden = tokens.shape
        across = jnp.swapaxes(_layer_norm("norm1")(tokens), 1, 2)
        across = nn.Dense(patches, name="patch_out")(nn.relu(nn.Dense(_MIX, name="patch_in")(across)))
        tokens = tokens + jnp.swapaxes(across, 1, 2)
        within = nn.relu(nn.Dense(_MIX, name="hidden_in")(_layer_norm("norm2")(tokens)))
        return tokens + nn.Dense(hidden, name="hidden_out")(within)


class GalaxyNet(nn.Module):
    """The score grad log p_t(x) of an image at time t.

    The strided convolutions at both ends of the original network have patches that do not overlap, so here they are
    matrix products over a patch's pixels.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w 1"], t: Float[Array, ""]) -> Float[Array, "batch h w 1"]:
        batch, height, width, channels = x.shape
        rows, columns = height // _PATCH, width // _PATCH
        time = jnp.broadcast_to(t / _T_SCALE, (batch, height, width, 1)).astype(x.dtype)
        pixels = jnp.concatenate([x, time], -1).reshape(batch, rows, _PATCH, columns, _PATCH, channels + 1)
        tokens = pixels.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        tokens = nn.Dense(_HIDDEN, name="patches_in")(tokens)
        for i in range(_BLOCKS):
            tokens = _MixerBlock(name=f"block{i}")(tokens)
        pixels = nn.Dense(_PATCH**2 * channels, name="patches_out")(_layer_norm("norm")(tokens))
        pixels = pixels.reshape(batch, rows, columns, _PATCH, _PATCH, channels).swapaxes(2, 3)
        return pixels.reshape(x.shape)


def load(survey: str) -> tuple[denoisers.Model, NoiseSchedule, tuple[int, int, int]]:
    """A published network as a noise prediction.

    Args:
        survey: a name in SURVEYS.

    Returns:
        model(x, t, cond) -> eps for x (batch, size, size, 1), cond unused; the noise schedule, with t_min = 1e-3; and
        the shape (size, size, 1) of one image.

    Raises:
        ValueError: if the name is unknown, or the file is cut short or does not hold this network.
        ImportError: if the package that ships the weights is not installed.
    """
    if survey not in SURVEYS:
        raise ValueError(f"survey must be one of {sorted(SURVEYS)}, got {survey!r}")
    size = SURVEYS[survey].size
    schedule = VPLinear(beta_0=1.0, beta_1=1.0, t_min=1e-3, t_max=10.0)
    weights = read_weights(files.shipped(SURVEYS[survey].file, "galaxygrad"), size)
    network = Partial(_apply, {"params": jax.tree.map(jnp.asarray, weights)})
    return denoisers.to_noise(network, schedule, "score"), schedule, (size, size, 1)


def read_weights(path: Path, size: int) -> PyTree:
    """Read a network's weights from a sequence of `np.save` records, with NumPy alone.

    Args:
        path: the file.
        size: side of the network's images in pixels.

    Returns:
        The parameters of `GalaxyNet`, float32.

    Raises:
        ValueError: if the file is cut short, continues after its end, or holds an array of another shape.
    """
    patches, hidden, mix = (size // _PATCH) ** 2, _HIDDEN, _MIX
    with path.open("rb") as file:

        def read(*shape: int) -> np.ndarray:
            try:
                array = np.load(file, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{path}: cut short or damaged before byte {file.tell()} ({error})") from error
            if array.shape != shape:
                raise ValueError(
                    f"{path}: an array of shape {array.shape} where {shape} belongs; not this network's file?"
                )
            return array.astype(np.float32)

        def dense(inputs: int, outputs: int) -> dict[str, np.ndarray]:
            return {"kernel": read(outputs, inputs).T, "bias": read(outputs)}

        def layer_norm() -> dict[str, np.ndarray]:
            return {"scale": read(patches, hidden), "bias": read(patches, hidden)}

        def layer_norm_transposed() -> dict[str, np.ndarray]:
            return {"scale": read(hidden, patches).T, "bias": read(hidden, patches).T}

        # (out, in, row, column) -> (row, column, in) by out
        kernel = read(hidden, 2, _PATCH, _PATCH).transpose(2, 3, 1, 0).reshape(-1, hidden)
        weights = {"patches_in": {"kernel": kernel, "bias": read(hidden, 1, 1).reshape(-1)}}
        # A transposed convolution stored as the convolution it is the transpose of: its pixels run backwards.
        kernel = read(1, hidden, _PATCH, _PATCH)[0, :, ::-1, ::-1].reshape(hidden, -1)
        weights["patches_out"] = {"kernel": kernel, "bias": np.repeat(read(1, 1, 1).reshape(-1), _PATCH**2)}
        for i in range(_BLOCKS):
            weights[f"block{i}"] = {
                "patch_in": dense(patches, mix),
                "patch_out": dense(mix, patches),
                "hidden_in": dense(hidden, mix),
                "hidden_out": dense(mix, hidden),
                "norm1": layer_norm_transposed(),
                "norm2": layer_norm(),
            }
        weights["norm"] = layer_norm_transposed()
        read()  # the scale of t
        if file.read(1):
            raise ValueError(f"{path}: continues after the last array; not this network's file?")
    return weights


def _apply(variables: PyTree, x: Array, t: Array, cond: PyTree = None) -> Array:
    return jnp.asarray(GalaxyNet().apply(variables, x, t))


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, reduction_axes=(1, 2), feature_axes=(1, 2), use_fast_variance=False, name=name)
