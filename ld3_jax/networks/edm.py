"""The pixel-space models of EDM: DDPM++, NCSN++ and ADM, on CIFAR-10, FFHQ, AFHQv2 and ImageNet.

Reference: Karras et al., arXiv:2206.00364.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from ld3_jax import denoisers
from ld3_jax.networks import weights
from ld3_jax.networks.edm_unets import DhariwalUNet, SongUNet
from ld3_jax.ranges import POSITIVE, check, one_of
from ld3_jax.schedules import NoiseSchedule, VELinear, VPLinear

_SCHEDULE = VELinear()
_SIGMA_DATA = 0.5

Loaded = tuple[denoisers.Denoiser, NoiseSchedule, tuple[int, int, int]]


@dataclass(frozen=True)
class Network:
    """The architecture of a published model of RGB images.

    Attributes:
        module: the network.
        size: side of an image in pixels.
        preconditioning: how the network was trained, one of PRECONDITIONINGS.
        sigma_data: standard deviation of the data, for "edm".
        schedule: the noise levels at which it is sampled; its time is the noise level.
    """

    module: SongUNet | DhariwalUNet
    size: int
    preconditioning: str = "edm"
    sigma_data: float = _SIGMA_DATA
    schedule: NoiseSchedule = _SCHEDULE

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image."""
        return self.size, self.size, 3


_DDPMPP = SongUNet(augment_dim=9)
_NCSNPP = _DDPMPP.clone(
    embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1)
)
_DDPMPP_64, _NCSNPP_64 = (net.clone(channel_mult=(1, 2, 2, 2)) for net in (_DDPMPP, _NCSNPP))

NETWORKS = {
    "cifar10": Network(_DDPMPP, 32),
    "cifar10_ve": Network(_NCSNPP, 32),
    "cifar10_cond": Network(_DDPMPP.clone(label_dim=10), 32),
    "cifar10_cond_ve": Network(_NCSNPP.clone(label_dim=10), 32),
    "ffhq64": Network(_DDPMPP_64, 64),
    "ffhq64_ve": Network(_NCSNPP_64, 64),
    "afhqv2_64": Network(_DDPMPP_64, 64),
    "afhqv2_64_ve": Network(_NCSNPP_64, 64),
    "imagenet64": Network(DhariwalUNet(label_dim=1000), 64),
}


def shrink(network: Network) -> Network:
    """The same kind of model in a small size, for tests: it keeps preconditioning and classes."""
    module = network.module.clone(model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(8,))
    return replace(network, module=module, size=16)


def shapes(network: Network) -> PyTree:
    """Shapes and dtypes of a model's parameters."""
    return weights.abstract(network.module, jnp.zeros((1, *network.shape)), jnp.zeros(()))


def preconditioned_as(network: Network, config: Mapping[str, Any], what: str) -> Network:
    """The network with the preconditioning that its file says it was trained with.

    Args:
        network: the architecture.
        config: `class_name` and constructor arguments from the file, see `files.Checkpoint`; without a `class_name`
            the network stays as it is.
        what: name of the file, for messages.

    Raises:
        ValueError: if the file's preconditioning is not one of PRECONDITIONINGS, or has constants that its formula
            there does not have.
    """
    if "class_name" not in config:
        return network
    name = str(config["class_name"]).rpartition(".")[2]
    if name not in _CLASSES:
        raise ValueError(f"{what}: preconditioning must be one of {sorted(_CLASSES)}, the file's is {name:.100}")
    kind = _CLASSES[name]
    if other := {key: config[key] for key, usual in _CONSTANTS[kind].items() if config.get(key, usual) != usual}:
        raise ValueError(f"{what}: {name} with {other!s:.100}; only {_CONSTANTS[kind]} are supported")
    sigma_data = config.get("sigma_data", _SIGMA_DATA)
    if lacking := POSITIVE.lacks(sigma_data):
        raise ValueError(f"{what}: sigma_data must be {lacking}, got {sigma_data!r:.100}")
    return replace(network, preconditioning=kind, sigma_data=float(sigma_data))


def from_state(
    network: Network, state: Mapping[str, np.ndarray], what: str, *, dtype: jnp.dtype | type = jnp.float32
) -> Loaded:
    """A model with published weights as a noise prediction.

    Args:
        network: the architecture, for instance NETWORKS["cifar10"].
        state: the arrays under their published names, which begin with `model.`.
        what: name of the file, for messages.
        dtype: of the computation inside the network.

    Returns:
        model(x, t, cond) -> eps, with cond one-hot classes (batch, label_dim) or None; its noise schedule, in which t
        is the noise level; and the shape of one image.

    Raises:
        ValueError: if an array is missing, left over, of another shape or not finite; the message names it.
    """
    params = weights.fill(shapes(network), state, what, prefix="model.", ignore=("resample_filter",))
    return _assemble(network, params, dtype)


def from_random(network: Network, seed: int = 0, *, dtype: jnp.dtype | type = jnp.float32) -> Loaded:
    """A model with random weights instead of the published ones, otherwise as `from_state`; see `shrink`."""
    return _assemble(network, weights.random(shapes(network), seed), dtype)


def _assemble(network: Network, params: PyTree, dtype: jnp.dtype | type) -> Loaded:
    raw = Partial(network.module.clone(dtype=dtype).apply, {"params": jax.tree.map(jnp.asarray, params)})
    check({"preconditioning": network.preconditioning}, {"preconditioning": one_of(PRECONDITIONINGS)})
    model = PRECONDITIONINGS[network.preconditioning](raw, network.sigma_data)
    return model, network.schedule, network.shape


def _edm(network: denoisers.Model, sigma_data: float) -> denoisers.Denoiser:
    # The usual constant is not a leaf: schedule files hold a digest over the leaves.
    constants = {} if sigma_data == _SIGMA_DATA else {"sigma_data": sigma_data}
    return denoisers.Denoiser(Partial(_data, network, **constants), _SCHEDULE, "data")


def _data(
    network: denoisers.Model, x: Array, sigma: Array, cond: PyTree = None, *, sigma_data: Array | float = _SIGMA_DATA
) -> Array:
    return denoisers.edm_preconditioned(network, sigma_data)(x, sigma, cond)


def _vp(network: denoisers.Model, x: Array, sigma: Array, cond: PyTree = None) -> Array:
    return network(x * (sigma**2 + 1) ** -0.5, 999 * VPLinear().inverse_lam(-jnp.log(sigma)), cond)


def _ve(network: denoisers.Model, x: Array, sigma: Array, cond: PyTree = None) -> Array:
    return -network(x, jnp.log(sigma / 2), cond)


# From a raw network F to its noise prediction on `VELinear`, whose time is the noise level sigma, so that the denoiser
# D(x; sigma) = x - sigma eps is that of Karras et al., arXiv:2206.00364, table 1:
#     edm  D = c_skip x + c_out F(c_in x, log(sigma) / 4); see `denoisers.edm_preconditioned`
#     vp   eps = F(x / sqrt(sigma^2 + 1), 999 t), where `VPLinear` has the same signal-to-noise ratio at time t
#     ve   eps = -F(x, log(sigma / 2))
PRECONDITIONINGS = {
    "edm": _edm,
    "vp": lambda network, sigma_data: denoisers.to_noise(Partial(_vp, network), _SCHEDULE, "noise"),
    "ve": lambda network, sigma_data: denoisers.to_noise(Partial(_ve, network), _SCHEDULE, "noise"),
}
# The published classes, and their constants that the formulas above contain.
_CLASSES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
_CONSTANTS = {"edm": {}, "vp": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}, "ve": {}}
