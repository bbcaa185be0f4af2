"""Families of pre-trained models: from settings to a noise prediction with all that the mains need beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray, PyTree

from experiments import common, download
from ld3_jax import denoisers, plots, schedules
from ld3_jax.networks import edm, files, galaxy, gaussian, latent, text
from ld3_jax.networks.edm import Network
from ld3_jax.networks.latent import LatentDiffusion
from ld3_jax.schedules import NoiseSchedule

_ERROR_GAIN = 5
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TEXT_CACHE = Path("runs/text")

Picture = Callable[[Path, Mapping[str, np.ndarray], str, Mapping[str, Sequence[str]]], None]
Gallery = Callable[[Path, np.ndarray, str], None]


@dataclass(frozen=True)
class Settings:
    """The network part of a configuration; see configs/default.py.

    Attributes:
        family, name: which model.
        file: its weights; "" where a package ships them.
        first_stage: weights of a latent model's first stage; "" where `file` holds them, too.
        dtype: of the computation inside the network, "float32" or "bfloat16".
        guidance: scale of classifier-free guidance; 1 is none.
        prompts, text_encoder: a file of prompts, and the folder of the encoder that makes conditions of them.
        random_weights: random weights in a shrunken size, in place of the files.

    Raises:
        ValueError: if the dtype is unknown or the guidance is not positive.
    """

    family: str
    name: str
    file: str = ""
    first_stage: str = ""
    dtype: str = "float32"
    guidance: float = 1.0
    prompts: str = ""
    text_encoder: str = ""
    random_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"network.dtype must be one of {sorted(_DTYPES)}, got {self.dtype!r}")
        if not self.guidance > 0:
            raise ValueError(f"network.guidance must be greater than 0, got {self.guidance}")


@dataclass(frozen=True)
class PretrainedModel:
    """A noise prediction and what belongs to it.

    Attributes:
        settings: what it was made of.
        noise: model(x, t, cond) -> eps.
        schedule: its noise schedule.
        shape: of one state.
        picture: picture(path, rows, title, notes) draws rows of samples from the same noise.
        gallery: gallery(path, samples, title) draws many samples.
        shown: how many samples a row of the picture takes.
        decode: from states at t_min to samples.
        draw_condition: draw_condition(key, n) -> n conditions; None if the model takes none.
    """

    settings: Settings
    noise: Partial
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    picture: Picture
    gallery: Gallery
    shown: int
    decode: Partial = field(default_factory=lambda: Partial(_unchanged))
    draw_condition: Callable[[PRNGKeyArray, int], PyTree] | None = None

    def __str__(self) -> str:
        return f"{self.settings.family} {self.settings.name}"


def _unchanged(states: PyTree) -> PyTree:
    return states


def edm_model(settings: Settings) -> PretrainedModel:
    """Karras et al.'s models of small images."""
    network: Network = _named(edm.NETWORKS, settings)
    _refuse(settings, "guidance", "first_stage", "prompts", "text_encoder")
    if settings.random_weights:
        network = edm.shrink(network)
        noise, schedule, shape = edm.from_random(network, dtype=_DTYPES[settings.dtype])
    else:
        state = _state(settings.file)
        noise, schedule, shape = edm.from_state(network, state, settings.file, dtype=_DTYPES[settings.dtype])
    classes = network.module.label_dim

    def draw_condition(key: PRNGKeyArray, count: int) -> Array:
        return jax.nn.one_hot(jax.random.randint(key, (count,), 0, classes), classes)

    return PretrainedModel(
        settings, noise, schedule, shape, *_views(_rgb), shown=8, draw_condition=draw_condition if classes else None
    )


def latent_model(settings: Settings) -> PretrainedModel:
    """Latent diffusion: unconditional, of classes, of text."""
    network: LatentDiffusion = _named(latent.NETWORKS, settings)
    _check_conditions(network, settings)
    if settings.random_weights:
        network = latent.shrink(network)
        model = latent.from_random(network, dtype=_DTYPES[settings.dtype])
    else:
        state = _latent_state(network, settings)
        model = latent.from_state(network, state, settings.file, dtype=_DTYPES[settings.dtype])
    draw_condition, uncond = _latent_conditions(network, model, settings)
    noise = model.model if settings.guidance == 1 else denoisers.guided(model.model, uncond, settings.guidance)
    return PretrainedModel(
        settings,
        noise,
        model.schedule,
        model.shape,
        *_views(_rgb),
        shown=6,
        decode=model.decode,
        draw_condition=draw_condition,
    )


def galaxy_model(settings: Settings) -> PretrainedModel:
    """Images of galaxies; the weights come with a package."""
    _refuse(settings, "guidance", "first_stage", "prompts", "text_encoder", "file", "random_weights", "dtype")
    noise, schedule, shape = galaxy.load(settings.name)

    def display(images: np.ndarray, like: np.ndarray) -> np.ndarray:
        # The images are log(flux + 1) / 0.1, which is the stretch that galaxies are looked at in.
        return images / float(np.quantile(like, 0.998))

    return PretrainedModel(settings, noise, schedule, shape, *_views(display), shown=8)


def gaussian_model(settings: Settings) -> PretrainedModel:
    """An analytic mixture in the plane."""
    _refuse(settings, "guidance", "first_stage", "prompts", "text_encoder", "file", "random_weights", "dtype")
    if settings.name != "ring":
        raise ValueError(f"network.name of family 'gaussian' must be 'ring', got {settings.name!r}")
    schedule = schedules.vp_linear()
    mixture = gaussian.ring()

    def picture(path: Path, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]) -> None:
        plots.scatter_rows(path, rows, title)

    def gallery(path: Path, samples: np.ndarray, title: str) -> None:
        plots.scatter_rows(path, {f"{len(samples)} samples": samples}, title)

    noise = gaussian.noise_model(mixture, schedule)
    return PretrainedModel(settings, noise, schedule, mixture.mean.shape[1:], picture, gallery, shown=100)


def _named(networks: Mapping, settings: Settings):
    if settings.name not in networks:
        raise ValueError(
            f"network.name of family {settings.family!r} must be one of {sorted(networks)}, got {settings.name!r}"
        )
    return networks[settings.name]


def _refuse(settings: Settings, *names: str) -> None:
    """Settings that a family does not have must be left at their defaults."""
    for name in names:
        given, default = getattr(settings, name), getattr(Settings("", ""), name)
        if given != default:
            raise ValueError(f"family {settings.family!r} has no {name}: it must be {default!r}, got {given!r}")


def _state(file: str) -> dict[str, np.ndarray]:
    if not file:
        raise ValueError("network.file must name the file of the weights")
    return files.read(download.fetch(Path(file))).state


def _latent_state(network: LatentDiffusion, settings: Settings) -> dict[str, np.ndarray]:
    """The arrays of both files under the original names, whichever layout they are in."""
    state = _state(settings.file)
    if any(name.startswith("down_blocks.") for name in state):
        state = latent.from_diffusers_unet(state, network.unet)
    if settings.first_stage:
        first = _state(settings.first_stage)
        if any(name.startswith("decoder.up_blocks.") for name in first):
            first = latent.from_diffusers_autoencoder(first, network.autoencoder)
        state |= {name: array for name, array in first.items() if name.startswith("first_stage_model.")}
    return state


def _check_conditions(network: LatentDiffusion, settings: Settings) -> None:
    """Before gigabytes are read: a text model has its prompts, and no other has any."""
    if network.context_shape is None:
        _refuse(settings, "guidance")
    if network.context_shape is None or network.classes:
        _refuse(settings, "prompts", "text_encoder")
    elif not settings.random_weights and not (settings.prompts and settings.text_encoder):
        raise ValueError(
            f"{settings.name} is conditioned on text: network.prompts must name a file of prompts and "
            f"network.text_encoder the folder of their encoder, got {settings.prompts!r} and {settings.text_encoder!r}"
        )


def _latent_conditions(
    network: LatentDiffusion, model: latent.Pretrained, settings: Settings
) -> tuple[Callable[[PRNGKeyArray, int], Array] | None, Array | None]:
    """How conditions are drawn, and the one that stands for none."""
    if model.embed is not None:
        embed, classes = model.embed, network.classes - 1  # the last one stands for none
        return (
            lambda key, count: embed(jax.random.randint(key, (count,), 0, classes)),
            embed(jnp.array([classes]))[0],
        )
    if network.context_shape is None:
        return None, None
    if settings.random_weights:
        shape = network.context_shape
        return lambda key, count: jax.random.normal(key, (count, *shape)), jnp.zeros(shape)
    prompts = text.read_prompts(Path(settings.prompts))
    with common.progress("text", len(prompts) + 1) as update:
        found = text.embed(prompts, Path(settings.text_encoder), _TEXT_CACHE, lambda done, total: update(done))
    contexts = jnp.asarray(found.prompts)

    def draw_condition(key: PRNGKeyArray, count: int) -> Array:
        # Each prompt once before any comes twice.
        rounds = [jax.random.permutation(k, len(contexts)) for k in jax.random.split(key, -(-count // len(contexts)))]
        return contexts[jnp.concatenate(rounds)[:count]]

    return draw_condition, jnp.asarray(found.empty)


def _rgb(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    return (images + 1) / 2


def _views(display: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[Picture, Gallery]:
    """A picture of rows and one of many samples; display(images, like) brings images to where [0, 1] is shown."""

    def picture(path: Path, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]) -> None:
        target = display(rows["teacher"], rows["teacher"])
        shown = {}
        for row, images in rows.items():
            images = display(images, rows["teacher"])
            shown[row] = np.clip(images, 0, 1)
            if row in notes:
                error = _ERROR_GAIN * np.abs(images - target)
                shown[f"{row.splitlines()[-1]}:\nerror x {_ERROR_GAIN}"] = np.clip(error, 0, 1)
        plots.image_rows(path, shown, title, notes)

    def gallery(path: Path, samples: np.ndarray, title: str) -> None:
        plots.image_grid(path, np.clip(display(samples, samples), 0, 1), title)

    return picture, gallery
