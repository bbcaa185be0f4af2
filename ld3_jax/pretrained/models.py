"""Pre-trained models by name: from settings to a noise prediction with all that belongs to it."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ld3_jax import denoisers, losses, poses
from ld3_jax.disk import digest, read_json
from ld3_jax.losses import Loss
from ld3_jax.networks import edm, files, galaxy, gaussian, latent, pose, text
from ld3_jax.networks.latent import LatentDiffusion
from ld3_jax.poses import molecules
from ld3_jax.pretrained import download
from ld3_jax.ranges import COUNT_OR_ZERO, POSITIVE, check
from ld3_jax.schedules import NoiseSchedule, VPLinear
from ld3_jax.teacher import draw_noise

OnProgress = Callable[[str, int, int], None]
Draw = Callable[[PRNGKeyArray, int, int], PyTree]
Display = Callable[[np.ndarray, np.ndarray], np.ndarray]

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TEXT_CACHE = Path("runs/text")
_OF_LATENTS = ("guidance", "first_stage", "prediction", "prompts", "text_encoder", "num_prompts")
_OF_FILES = (*_OF_LATENTS, "file", "random_weights", "dtype")


@dataclass(frozen=True)
class Settings:
    """How a model is loaded.

    Attributes:
        file: its weights, which are downloaded if an official file is missing; "" where a package ships them.
        first_stage: weights of a latent model's first stage; "" where `file` holds them, too.
        prediction: what a latent model's network predicts, "noise", "v", "data", "flow" or "reversed_flow"; "": as its
            file says, or else the architecture.
        dtype: of the computation inside the network, "float32" or "bfloat16".
        guidance: scale of classifier-free guidance; 1 is none.
        prompts, text_encoder: a file of prompts, and the folder of the encoder that makes conditions of them.
        num_prompts: how many of the prompts are used, from the first on; 0: all.
        random_weights: random weights in a shrunken size, in place of the files.

    Raises:
        ValueError: if the dtype is unknown, the guidance is not positive, or num_prompts is negative.
    """

    file: str = ""
    first_stage: str = ""
    prediction: str = ""
    dtype: str = "float32"
    guidance: float = 1.0
    prompts: str = ""
    text_encoder: str = ""
    num_prompts: int = 0
    random_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"network.dtype must be one of {sorted(_DTYPES)}, got {self.dtype!r}")
        check(
            {"network.guidance": self.guidance, "network.num_prompts": self.num_prompts},
            {"network.guidance": POSITIVE, "network.num_prompts": COUNT_OR_ZERO},
        )


@dataclass(frozen=True)
class Pretrained:
    """A noise prediction and what belongs to it.

    Attributes:
        name: of the model.
        settings: how it was loaded.
        model: model(x, t, cond) -> eps.
        schedule: its noise schedule.
        shape: of one state.
        shown: how many samples a row of pictures takes.
        display: display(samples, like) -> images in [0, 1]; None for points in the plane.
        decode: from states at t_min to samples.
        draw_condition: draw_condition(key, n, first) -> n conditions, each fixed by key and number, from number `first`
            on; None if the model takes none.
        draw_prior: draw_prior(key, n, first) -> n initial states likewise; None: normal noise of the shape, scaled by
            the prior.
        squared_error: squared_error(samples, targets) -> (n,) squared distances.
        differences: whether the difference of two images from `display` is one.
        formats: ending of a file -> the file's content from samples; arrays and pictures can always be written.
    """

    name: str
    settings: Settings
    model: Callable[..., PyTree]
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    shown: int = 8
    display: Display | None = None
    decode: Partial = dataclasses.field(default_factory=lambda: Partial(_unchanged))
    draw_condition: Draw | None = None
    draw_prior: Draw | None = None
    squared_error: Loss = losses.l2
    differences: bool = True
    formats: Mapping[str, Callable[[np.ndarray], bytes]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def draw(self, key: PRNGKeyArray, count: int, first: int = 0) -> tuple[PyTree, PyTree]:
        """Initial states (count, *shape), scaled by the prior, and their conditions, or None, from number `first` on.

        Each is fixed by the key and its number, whatever is drawn with it.
        """
        noise_key, cond_key = jax.random.split(key)
        if self.draw_prior:
            x_T = self.draw_prior(noise_key, count, first)
        else:
            x_T = self.schedule.prior_scale * draw_noise(noise_key, count, self.shape, first)
        return x_T, self.draw_condition(cond_key, count, first) if self.draw_condition else None

    def identity(self) -> dict[str, Any]:
        """What a file of learned times must say of its model: digests of weights and guidance, and of its decoder; what
        its network predicts."""
        digests = {"digest": digest(self.model)}
        if jax.tree.leaves(self.decode):
            digests["decoder"] = digest(self.decode)
        predicts = {"predicts": denoisers.prediction_of(self.model)}
        return {"name": self.name, **dataclasses.asdict(self.settings), **digests, **predicts}


def load(name: str, *, on_progress: OnProgress = lambda label, done, total: None, **settings: Any) -> Pretrained:
    """Load a pre-trained model.

    Args:
        name: one of MODELS.
        on_progress: called with what is under way (a download, the text), how much is done, and how much there is.
        **settings: the fields of `Settings`.

    Raises:
        ValueError: if the name or a setting is unknown or does not belong to the model, or a file does not hold it.
        FileNotFoundError, ConnectionError: if the weights are neither here nor can be downloaded.

    Example: `load("hsc32")`, `load("cifar10", file="models/edm-cifar10-32x32-uncond-vp.pkl")`.
    """
    if name not in MODELS:
        close = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, MODELS, 1))
        raise ValueError(f"network.name must be one of {sorted(MODELS)}, got {name!r}{close}")
    usual = dataclasses.asdict(Settings())
    if unknown := settings.keys() - usual.keys():
        raise ValueError(f"{sorted(unknown)} are no settings of a model; see ld3_jax.pretrained.Settings")
    for setting, given in settings.items():
        kind = type(usual[setting])
        if type(given) not in ((float, int) if kind is float else (kind,)):
            raise ValueError(f"network.{setting} must be of type {kind.__name__}, got {given!r}")
    return MODELS[name](name, Settings(**settings), on_progress)


def _edm(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """Karras et al.'s models of small images."""
    network = edm.NETWORKS[name]
    _refuse(name, settings, *_OF_LATENTS)
    if settings.random_weights:
        network = edm.shrink(network)
        model, schedule, shape = edm.from_random(network, dtype=_DTYPES[settings.dtype])
    else:
        checkpoint = _read(settings.file, on_progress)
        network = edm.preconditioned_as(network, checkpoint.config, settings.file)
        model, schedule, shape = edm.from_state(network, checkpoint.state, settings.file, dtype=_DTYPES[settings.dtype])
    classes = network.module.label_dim

    def draw_condition(key: PRNGKeyArray, count: int, first: int = 0) -> Array:
        return jax.nn.one_hot(_draw_classes(key, count, classes, first), classes)

    drawn = draw_condition if classes else None
    return Pretrained(name, settings, model, schedule, shape, display=_rgb, draw_condition=drawn)


def _latent(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """Latent diffusion: unconditional, of classes, of text."""
    usual = latent.NETWORKS[name]
    network = latent.as_trained(usual, files.Checkpoint("", {}, {}), name, settings.prediction)
    _check_conditions(name, network, settings)
    if settings.random_weights:
        network = latent.shrink(network)
        loaded = latent.from_random(network, dtype=_DTYPES[settings.dtype])
    else:
        read, path = _read(settings.file, on_progress), Path(settings.file).resolve()
        of_diffusers = path.parent.parent / "scheduler" / "scheduler_config.json"
        if usual.prediction == "noise" and path.parent.name == "unet" and of_diffusers.is_file():
            if not isinstance(said := read_json(of_diffusers), dict):
                raise ValueError(f"{of_diffusers}: no scheduler's configuration, which is an object, got {said!r:.80}")
            read = read._replace(config={**said, **read.config})
        network = latent.as_trained(usual, read, settings.file, settings.prediction)
        first = settings.first_stage and (_read(settings.first_stage, on_progress).state, settings.first_stage)
        loaded = latent.from_state(network, read.state, settings.file, first or None, dtype=_DTYPES[settings.dtype])
    draw_condition, uncond = _latent_conditions(network, loaded, settings, on_progress)
    return Pretrained(
        name,
        settings,
        loaded.model if settings.guidance == 1 else denoisers.guided(loaded.model, uncond, settings.guidance),
        loaded.schedule,
        loaded.shape,
        shown=6,
        display=_rgb,
        decode=loaded.decode,
        draw_condition=draw_condition,
    )


def _galaxy(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """Images of galaxies; the weights come with a package."""
    _refuse(name, settings, *_OF_FILES)
    return Pretrained(name, settings, *galaxy.load(name), display=_stretched)


def _gaussian(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """An analytic mixture in the plane."""
    _refuse(name, settings, *_OF_FILES)
    schedule, mixture = VPLinear(), gaussian.ring()
    model = gaussian.noise_model(mixture, schedule)
    return Pretrained(name, settings, model, schedule, mixture.mean.shape[1:], shown=100)


def _docking(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """The exact score of a ligand's known poses in its pocket; samples are the positions of its atoms."""
    _refuse(name, settings, *_OF_FILES)
    found, noise = molecules.load(name), poses.PoseNoise()
    return _of_poses(name, settings, found, poses.noise_model(found.poses, noise), noise)


def _docking_network(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """A network that was trained on the trajectory's poses; its weights come with this package, or are a file's."""
    _refuse(name, settings, *(setting for setting in _OF_FILES if setting != "file"))
    found, noise = molecules.load(molecules.TRAJECTORY), poses.PoseNoise()
    context = pose.context_of(found)
    params = pose.read(Path(settings.file) if settings.file else pose.ERGOTAMINE, context)
    return _of_poses(name, settings, found, pose.noise_model(params, context, noise), noise)


def _of_poses(
    name: str, settings: Settings, found: molecules.Complex, model: Partial, noise: poses.PoseNoise
) -> Pretrained:
    torsions = len(found.ligand.bonds)
    return Pretrained(
        name,
        settings,
        model,
        noise,
        found.ligand.positions.shape,
        shown=6,
        display=partial(molecules.images, found),
        decode=Partial(poses.atoms, found.ligand),
        draw_prior=lambda key, count, first=0: poses.draw_prior(key, count, torsions, noise, first),
        squared_error=poses.mean_square(found.ligand),
        differences=False,
        formats={".sdf": partial(molecules.sdf, found), ".html": partial(molecules.page, found)},
    )


MODELS: dict[str, Callable[[str, Settings, OnProgress], Pretrained]] = {
    **dict.fromkeys(edm.NETWORKS, _edm),
    **dict.fromkeys(latent.NETWORKS, _latent),
    **dict.fromkeys(galaxy.SURVEYS, _galaxy),
    "ring": _gaussian,
    **dict.fromkeys((molecules.TRAJECTORY, *molecules.CRYSTALS), _docking),
    f"{molecules.TRAJECTORY}_network": _docking_network,
}


def _refuse(name: str, settings: Settings, *names: str) -> None:
    """Settings that a model does not have must be left at their defaults."""
    for setting in names:
        given, default = getattr(settings, setting), getattr(Settings(), setting)
        if given != default:
            raise ValueError(f"{name!r} has no {setting}: it must be {default!r}, got {given!r}")


def _read(file: str, on_progress: OnProgress) -> files.Checkpoint:
    if not file:
        raise ValueError("network.file must name the file of the weights")
    return files.read(download.fetch(Path(file), on_progress))


def _check_conditions(name: str, network: LatentDiffusion, settings: Settings) -> None:
    """Before gigabytes are read: a text model has its prompts, and no other has any."""
    if network.context_shape is None:
        _refuse(name, settings, "guidance")
    if network.context_shape is None or network.classes:
        _refuse(name, settings, "prompts", "text_encoder", "num_prompts")
    elif not settings.random_weights and not (settings.prompts and settings.text_encoder):
        raise ValueError(
            f"{name} is conditioned on text: network.prompts must name a file of prompts and "
            f"network.text_encoder the folder of their encoder, got {settings.prompts!r} and {settings.text_encoder!r}"
        )


def _latent_conditions(
    network: LatentDiffusion, loaded: latent.Pretrained, settings: Settings, on_progress: OnProgress
) -> tuple[Draw | None, Array | None]:
    """How conditions are drawn, and the one that stands for none."""
    if loaded.embed is not None:
        embed, classes = loaded.embed, network.classes - 1  # the last one stands for none
        return (
            lambda key, count, first=0: embed(_draw_classes(key, count, classes, first)),
            embed(jnp.array([classes]))[0],
        )
    if network.context_shape is None:
        return None, None
    if settings.random_weights:
        shape = network.context_shape
        return lambda key, count, first=0: draw_noise(key, count, shape, first), jnp.zeros(shape)
    prompts = text.read_prompts(Path(settings.prompts))[: settings.num_prompts or None]
    found = text.embed(
        prompts, Path(settings.text_encoder), _TEXT_CACHE, lambda done, total: on_progress("text", done, total)
    )
    contexts = jnp.asarray(found.prompts)

    def draw_condition(key: PRNGKeyArray, count: int, first: int = 0) -> Array:
        # In rounds: each prompt once before any comes twice.
        round_, skipped = divmod(first, len(contexts))
        keys = [jax.random.fold_in(key, round_ + i) for i in range(-(-(skipped + count) // len(contexts)))]
        order = jnp.concatenate([jax.random.permutation(one, len(contexts)) for one in keys])
        return contexts[order[skipped : skipped + count]]

    return draw_condition, jnp.asarray(found.empty)


def _draw_classes(key: PRNGKeyArray, count: int, classes: int, first: int) -> Int[Array, "count"]:
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(count))
    return jax.vmap(lambda one: jax.random.randint(one, (), 0, classes))(keys)


def _rgb(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    return (images + 1) / 2


def _stretched(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    # The images are log(flux + 1) / 0.1, which is the stretch that galaxies are looked at in. Most pixels are sky.
    sky, bright = np.quantile(like, (0.5, 0.998))
    return (images - sky) / (bright - sky)


def _unchanged(states: PyTree) -> PyTree:
    return states
