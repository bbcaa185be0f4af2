"""Published latent-diffusion models: LSUN Bedroom, ImageNet, Stable Diffusion and InstaFlow.

A model is a U-Net on latents, a first stage that decodes them and, if it is conditioned on classes, a table of their
embeddings. Its arrays may have any of `layouts`.

Reference: Rombach et al., arXiv:2112.10752; Liu et al., arXiv:2309.06380 (InstaFlow).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from ld3_jax import denoisers
from ld3_jax.networks import layouts, weights
from ld3_jax.networks.autoencoder import Autoencoder
from ld3_jax.networks.files import MARKER, Checkpoint
from ld3_jax.networks.unet import UNet
from ld3_jax.schedules import NoiseSchedule, RectifiedFlow, VPDiscrete

_STEPS = 1000
_SHRUNKEN_IMAGE = 16  # pixels


def scaled_linear(beta_start: float, beta_end: float) -> VPDiscrete:
    """The schedule of latent diffusion, alpha^2 = prod (1 - beta): the roots of 1000 betas are evenly spaced.

    Raises:
        ValueError: unless 0 < beta_start, beta_end < 1.
    """
    betas = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), _STEPS) ** 2
    return VPDiscrete(np.cumprod(1 - betas))


def _at_step(unet: Partial, x: Array, t: Array, cond: PyTree = None) -> Array:
    # Step i of the training has t = (i + 1) / 1000.
    return unet(x, _STEPS * t - 1, cond)


def _at_time(unet: Partial, x: Array, t: Array, cond: PyTree = None) -> Array:
    # InstaFlow's own time runs from noise to data, so its velocity is x_0 - eps; its network is given 1000 at noise.
    return unet(x, _STEPS * t, cond)


_CALLS = {"noise": _at_step, "v": _at_step, "data": _at_step, "reversed_flow": _at_time, "flow": _at_time}
_SAID = {"epsilon": "noise", "v_prediction": "v", "sample": "data"}  # as in files and diffusers' schedulers
_ROOTS = {"linear": 1, "scaled_linear": 2}  # which root of the betas is evenly spaced, by diffusers' names
_UNREAD = ("edm_mean", "edm_vpred.sigma_max")  # markers of EDM's parametrisation of latents
_LEAST_SNR = 4.8973451890853435e-08  # the last alpha^2 in ComfyUI, where there should be no signal: lam stays finite


@dataclass(frozen=True)
class LatentDiffusion:
    """The architecture of a published model.

    Attributes:
        unet: the network.
        autoencoder: the first stage.
        size: side of a latent in pixels.
        schedule: the noise schedule that the network was trained with.
        prediction: what the model predicts: "noise", "v", or "reversed_flow" for InstaFlow's velocity.
        scale: the U-Net's latents are the first stage's times this.
        tokens: tokens of the context; 0 if there is none.
        classes: entries of the table of class embeddings, the last of which stands for no class; 0 if there is no
            table.

    Raises:
        ValueError: if the prediction is unknown.
    """

    unet: UNet
    autoencoder: Autoencoder
    size: int
    schedule: NoiseSchedule
    prediction: str = "noise"
    scale: float = 1.0
    tokens: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        if self.prediction not in _CALLS:
            raise ValueError(f"prediction must be one of {sorted(_CALLS)}, got {self.prediction!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a latent."""
        return self.size, self.size, self.autoencoder.latent_channels

    @property
    def context_shape(self) -> tuple[int, int] | None:
        """Shape of a latent's context, (tokens, channels), or None."""
        return None if self.unet.context_dim is None else (self.tokens, self.unet.context_dim)


_VQ_F4 = Autoencoder(channels=128, channel_mult=(1, 2, 4), latent_channels=3, codes=8192)
_KL_F8 = Autoencoder(channels=128, channel_mult=(1, 2, 4, 4), latent_channels=4)

_STABLE_DIFFUSION = LatentDiffusion(
    UNet(4, 320, channel_mult=(1, 2, 4, 4), attention_resolutions=(1, 2, 4), num_heads=8, context_dim=768),
    _KL_F8,
    size=64,
    schedule=scaled_linear(0.00085, 0.012),
    scale=0.18215,
    tokens=77,
)

NETWORKS = {
    "lsun_bedroom": LatentDiffusion(
        UNet(3, 224, channel_mult=(1, 2, 3, 4), attention_resolutions=(2, 4, 8), num_head_channels=32),
        _VQ_F4,
        size=64,
        schedule=scaled_linear(0.0015, 0.0195),
    ),
    "imagenet256": LatentDiffusion(
        UNet(3, 192, channel_mult=(1, 2, 3, 5), attention_resolutions=(2, 4, 8), num_heads=1, context_dim=512),
        _VQ_F4,
        size=64,
        schedule=scaled_linear(0.0015, 0.0195),
        tokens=1,
        classes=1001,
    ),
    "stable_diffusion": _STABLE_DIFFUSION,
    "instaflow": replace(_STABLE_DIFFUSION, schedule=RectifiedFlow(), prediction="reversed_flow"),
}


class Loaded(NamedTuple):
    """A model's functions, which hold its weights as leaves.

    Attributes:
        model: model(x, t, cond) -> eps, with cond the context (batch, tokens, channels) or None.
        decode: latents (batch, size, size, channels) -> images (batch, height, width, 3), nominally in [-1, 1].
        embed: class numbers (batch,) -> contexts (batch, 1, channels); None if the model has no classes.
    """

    model: denoisers.Denoiser
    decode: Partial
    embed: Partial | None


def shrink(network: LatentDiffusion) -> LatentDiffusion:
    """The same kind of model in a small size, for tests: it keeps classes, tokens and the first stage's factor."""
    context_dim = None if network.unet.context_dim is None else 8
    # Two channels in each of 32 groups: a norm over one channel alone takes away what the time adds to it.
    unet = network.unet.clone(
        model_channels=64, channel_mult=(1, 1), attention_resolutions=(2,), num_res_blocks=1, context_dim=context_dim
    )
    codes = None if network.autoencoder.codes is None else 64
    levels = len(network.autoencoder.channel_mult)
    autoencoder = network.autoencoder.clone(channels=32, channel_mult=(1,) * levels, num_res_blocks=0, codes=codes)
    return replace(network, unet=unet, autoencoder=autoencoder, size=_SHRUNKEN_IMAGE // network.autoencoder.factor)


def shapes(network: LatentDiffusion) -> dict[str, PyTree]:
    """Shapes and dtypes of a model's parameters: of its `unet`, its `autoencoder` and, if it has any, its `classes`."""
    latents, time = jnp.zeros((1, *network.shape)), jnp.zeros(())
    context = None if network.context_shape is None else jnp.zeros((1, *network.context_shape))
    images = jnp.zeros((1, network.autoencoder.factor, network.autoencoder.factor, 3))
    found = {
        "unet": weights.abstract(network.unet, latents, time, context),
        "autoencoder": weights.abstract(network.autoencoder, images),
    }
    if network.classes:
        table = nn.Embed(network.classes, network.unet.context_dim or 0)
        found["classes"] = weights.abstract(table, jnp.zeros(1, jnp.int32))
    return found


def as_trained(network: LatentDiffusion, checkpoint: Checkpoint, what: str, prediction: str = "") -> LatentDiffusion:
    """The network with the prediction and the noise schedule that its file says it was trained with.

    Markers are the names `v_pred`, `ztsnr` (zero terminal SNR) and `alphas_cumprod`, `modelspec.prediction_type` among
    safetensors' metadata, and the fields of diffusers' schedulers.

    Args:
        network: the architecture.
        checkpoint: its file.
        what: name of the file, for messages.
        prediction: what the network predicts; "": what the file says, or else the architecture.

    Raises:
        ValueError: if these contradict each other or the architecture.

    Reference: Lin et al., arXiv:2305.08891 (zero terminal SNR).
    """
    _, state, config = checkpoint
    said = {_SAID.get(str(config[key]), f"{config[key]!s:.80}") for key in (MARKER, "prediction_type") if key in config}
    said |= {prediction} - {""} | ({"v"} if "v_pred" in state else set()) | {name for name in _UNREAD if name in state}
    found, call = " and ".join(sorted(said)) or network.prediction, _CALLS[network.prediction]
    if found not in (allowed := [name for name in _CALLS if _CALLS[name] is call]):
        raise ValueError(
            f"{what}: network.prediction must be one of {allowed}; it, or the file's markers, say {found!r}"
        )
    schedule = _schedule(cast(VPDiscrete, network.schedule), checkpoint, what) if call is _at_step else network.schedule
    if schedule != network.schedule and found == "noise":
        raise ValueError(f"{what}: ends without signal (ztsnr), where noise says nothing; set network.prediction='v'")
    return replace(network, prediction=found, schedule=schedule)


def _schedule(usual: VPDiscrete, checkpoint: Checkpoint, what: str) -> VPDiscrete:
    """The usual noise schedule, or one with alpha shifted and scaled so that it falls to nearly 0."""
    root = np.sqrt(usual.alphas_cumprod)
    to_zero = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    rescaled = VPDiscrete([*to_zero[:-1], min(_LEAST_SNR, to_zero[-2] / 2)])
    if not _has_betas(checkpoint.config, usual):
        raise ValueError(f"{what}: its scheduler_config.json has other noise levels (betas) than this network's")
    if "ztsnr" in checkpoint.state or checkpoint.config.get("rescale_betas_zero_snr"):
        return rescaled
    held = np.asarray(checkpoint.state.get("alphas_cumprod", usual.alphas_cumprod), float)
    for schedule in (usual, rescaled):
        if _same(held, schedule):
            return schedule
    raise ValueError(f"{what}: was trained on another noise schedule (alphas_cumprod) than this network's")


def _same(alphas_cumprod: np.ndarray, schedule: VPDiscrete) -> bool:
    known = np.asarray(schedule.alphas_cumprod)
    return alphas_cumprod.shape == known.shape and np.allclose(alphas_cumprod, known, rtol=0.02, atol=5e-4)


def _has_betas(config: Mapping[str, Any], schedule: VPDiscrete) -> bool:
    """Whether the configuration of a diffusers scheduler, if it is one, is for a noise schedule."""
    betas = config.get("trained_betas")
    if config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous":
        return False
    try:
        if betas is None and {"_class_name", "beta_schedule"}.isdisjoint(config):
            return True
        if betas is None:
            root = _ROOTS[str(config["beta_schedule"])]
            first, last = np.array([config["beta_start"], config["beta_end"]], float) ** (1 / root)
            betas = np.linspace(first, last, config["num_train_timesteps"]) ** root
        return _same(np.cumprod(1 - np.asarray(betas, float)), schedule)
    except (LookupError, TypeError, ValueError):
        return False


def from_state(
    network: LatentDiffusion,
    state: Mapping[str, np.ndarray],
    what: str,
    first_stage: tuple[Mapping[str, np.ndarray], str] | None = None,
    *,
    dtype: jnp.dtype | type = jnp.float32,
) -> Loaded:
    """A model with published weights, in any of `layouts`.

    If the arrays also hold moving averages of weights (`model_ema.`), these are used.

    Args:
        network: the architecture, for instance NETWORKS["lsun_bedroom"].
        state: the arrays.
        what: name of the file, for messages.
        first_stage: the arrays of the first stage and the name of their file, if they are not in `state`.
        dtype: of the computation inside the networks.

    Raises:
        ValueError: if an array is missing, left over, of another shape or not finite, or only some arrays have
            averages; the message names it.
    """
    params, sources = {}, {"autoencoder": first_stage} if first_stage else {}
    for part, tree in shapes(network).items():
        arrays, name = sources.get(part, (state, what))
        found = layouts.original(part, tree, getattr(network, part), arrays, name)
        params[part] = weights.fill(tree, found, name, prefix=layouts.PREFIXES[part])
    return _assemble(network, params, dtype)


def from_random(network: LatentDiffusion, seed: int = 0, *, dtype: jnp.dtype | type = jnp.float32) -> Loaded:
    """A model with random weights instead of the published ones; see `shrink`."""
    return _assemble(network, weights.random(shapes(network), seed), dtype)


def _assemble(network: LatentDiffusion, params: PyTree, dtype: jnp.dtype | type) -> Loaded:
    params = jax.tree.map(jnp.asarray, params)
    unet, autoencoder = network.unet.clone(dtype=dtype), network.autoencoder.clone(dtype=dtype)
    raw = Partial(_CALLS[network.prediction], Partial(unet.apply, {"params": params["unet"]}))
    model = denoisers.to_noise(raw, network.schedule, network.prediction)
    decode = Partial(_decode, Partial(autoencoder.apply, {"params": params["autoencoder"]}), network.scale)
    embed = Partial(_embed, params["classes"]["embedding"]) if network.classes else None
    return Loaded(model, decode, embed)


def _decode(autoencoder: Partial, scale: Float[Array, ""] | float, latents: Float[Array, "batch h w c"]) -> Array:
    return autoencoder(latents / scale, method="decode")


def _embed(table: Float[Array, "classes dim"], labels: Int[Array, "batch"]) -> Float[Array, "batch 1 dim"]:
    # An index beyond the table gives NaN, not the last class.
    return table.at[labels].get(mode="fill", fill_value=jnp.nan)[:, None]
