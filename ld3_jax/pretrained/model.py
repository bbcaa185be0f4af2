"""What belongs to a pre-trained model, and the table of models by name, in which families register themselves."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray, PyTree

from ld3_jax import denoisers, losses
from ld3_jax.disk import digest
from ld3_jax.losses import Loss
from ld3_jax.ranges import COUNT_OR_ZERO, POSITIVE, check
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.starts import noised, starting_at
from ld3_jax.teacher import Pairs, draw_noise

OnProgress = Callable[[str, int, int], None]
Draw = Callable[[PRNGKeyArray, int, int], PyTree]
Images = Callable[[PRNGKeyArray, int, int, PyTree], PyTree]
Display = Callable[[np.ndarray, np.ndarray], np.ndarray]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _unchanged(states: PyTree) -> PyTree:
    return states


@dataclass(frozen=True)
class Settings:
    """How a model is loaded.

    Attributes:
        file: its weights, which are downloaded if an official file is missing; "" if a package ships them. For a
            diffusers pipeline, its folder.
        first_stage: weights of a latent model's first stage; "" if `file` also holds them.
        prediction: what a latent model's network predicts, "noise", "v", "data", "flow" or "reversed_flow"; "": what
            its file says, or else the architecture.
        dtype: of the computation inside the network, "float32" or "bfloat16".
        guidance: scale of classifier-free guidance; 1 is none.
        options: keyword arguments of a pipeline's call as JSON, '{"guidance_scale": 3, "height": 512}'; others have the
            pipeline's own defaults.
        decoded: whether samples are decoded before they are compared; otherwise latents are compared, and only pictures
            are decoded.
        prompts, text_encoder: a file of prompts, and the folder of the encoder that turns them into conditions.
        num_prompts: how many of the prompts are used, starting with the first; 0: all.
        random_weights: use random weights in a small size instead of the files.

    Raises:
        ValueError: if the dtype is unknown, the guidance is not positive, or num_prompts is negative.
    """

    file: str = ""
    first_stage: str = ""
    prediction: str = ""
    dtype: str = "float32"
    guidance: float = 1.0
    options: str = ""
    decoded: bool = True
    prompts: str = ""
    text_encoder: str = ""
    num_prompts: int = 0
    random_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"network.dtype must be one of {sorted(DTYPES)}, got {self.dtype!r}")
        check(
            {"network.guidance": self.guidance, "network.num_prompts": self.num_prompts},
            {"network.guidance": POSITIVE, "network.num_prompts": COUNT_OR_ZERO},
        )


_USUAL = dataclasses.asdict(Settings())


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
        decode: decode(states at t_min) -> samples.
        draw_condition: draw_condition(key, n, first) -> n conditions, each fixed by key and number, from number `first`
            on; None if the model takes none.
        draw_prior: draw_prior(key, n, first) -> n initial states likewise; None: normal noise of this shape, scaled by
            the prior.
        images: images(key, n, first, cond) -> n states without noise likewise, from which initial states below full
            noise are made; None if the noise schedule starts at full noise.
        squared_error: squared_error(samples, targets) -> (n,) squared distances.
        differences: whether the difference of two images from `display` is also an image.
        formats: ending of a file -> the file's content from samples; arrays and pictures can always be written.
        seconds: the time of a network call for one sample, if it was measured.
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
    images: Images | None = None
    squared_error: Loss = losses.l2
    differences: bool = True
    formats: Mapping[str, Callable[[np.ndarray], bytes]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    def __str__(self) -> str:
        return self.name

    def draw(self, key: PRNGKeyArray, count: int, first: int = 0) -> tuple[PyTree, PyTree]:
        """Initial states (count, *shape) and their conditions (or None), from number `first` on: noise scaled by the
        prior, or noised images if the noise schedule starts below full noise.

        Each depends only on the key and its number, not on what else is drawn.
        """
        noise_key, cond_key = jax.random.split(key)
        cond = self.draw_condition(cond_key, count, first) if self.draw_condition else None
        if self.images is None:
            return self.draw_noise(noise_key, count, first), cond
        image_key, noise_key = jax.random.split(noise_key)
        return noised(noise_key, self.images(image_key, count, first, cond), self.schedule, first=first), cond

    def draw_noise(self, key: PRNGKeyArray, count: int, first: int = 0) -> PyTree:
        """Initial states at full noise, (count, *shape), scaled by the prior."""
        if self.draw_prior:
            return self.draw_prior(key, count, first)
        return self.schedule.whole.prior_scale * draw_noise(key, count, self.shape, first)

    def shapes(self, count: int) -> Pairs:
        """The shapes of pairs of this model, with decoded samples."""

        def pairs() -> Pairs:
            key = jax.random.key(0)
            x_T, cond = self.draw_noise(key, count), self.draw_condition and self.draw_condition(key, count, 0)
            return Pairs(x_T, self.decode(x_T), cond)

        return jax.eval_shape(pairs)

    def starting_at(
        self, images: Images, t: float | None = None, *, sigma: float | None = None, strength: float | None = None
    ) -> "Pretrained":
        """The model with a start below full noise: its initial states are noised images.

        Args:
            images: see the attribute; `pretrained.starting` has the model's own samples, and images from a file.
            t, sigma, strength: one of them; see `ld3_jax.starting_at`.
        """
        schedule = starting_at(self.schedule, t, sigma=sigma, strength=strength)
        return dataclasses.replace(self, schedule=schedule, images=images)

    def identity(self) -> dict[str, Any]:
        """What a schedule file must say about its model: digests of weights, guidance and decoder, and what its network
        predicts."""
        digests = {"digest": digest(self.model)}
        if jax.tree.leaves(self.decode):
            digests["decoder"] = digest(self.decode)
        predicts = {"predicts": denoisers.prediction_of(self.model)}
        return {"name": self.name, **dataclasses.asdict(self.settings), **digests, **predicts}


Loader = Callable[[str, Settings, OnProgress], Pretrained]


class Entry(NamedTuple):
    """How a model is loaded, and the names of its settings."""

    load: Loader
    settings: tuple[str, ...]


MODELS: dict[str, Entry] = {}


def register(*names: str, settings: tuple[str, ...] = ()) -> Callable[[Loader], Loader]:
    """Register the function below under these names, for `load`.

    Args:
        names: the names of the models that it loads; a name that is already known is replaced.
        settings: the fields of `Settings` that they use.

    Raises:
        ValueError: if a setting is not a field of `Settings`.
    """
    if unknown := set(settings) - _USUAL.keys():
        raise ValueError(f"settings must be fields of Settings, {list(_USUAL)}, got {sorted(unknown)}")

    def registered(loader: Loader) -> Loader:
        MODELS.update(dict.fromkeys(names, Entry(loader, settings)))
        return loader

    return registered


def load(name: str, *, on_progress: OnProgress = lambda label, done, total: None, **settings: Any) -> Pretrained:
    """Load a pre-trained model.

    Args:
        name: one of MODELS.
        on_progress: called with the current work (a download, the text), how much is done, and how much there is.
        **settings: the fields of `Settings`.

    Raises:
        ValueError: if the name or a setting is unknown or does not belong to the model, or a file does not hold it.
        FileNotFoundError, ConnectionError: if the weights are neither here nor can be downloaded.

    Example: `load("hsc32")`, `load("cifar10", file="models/edm-cifar10-32x32-uncond-vp.pkl")`.
    """
    if name not in MODELS:
        close = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, MODELS, 1))
        raise ValueError(f"network.name must be one of {sorted(MODELS)}, got {name!r}{close}")
    if unknown := settings.keys() - _USUAL.keys():
        raise ValueError(f"{sorted(unknown)} are not settings of a model; see ld3_jax.pretrained.Settings")
    for setting, given in settings.items():
        kind = type(_USUAL[setting])
        if type(given) not in ((float, int) if kind is float else (kind,)):
            raise ValueError(f"network.{setting} must be of type {kind.__name__}, got {given!r}")
    model, given = MODELS[name], Settings(**settings)
    for setting, default in _USUAL.items():
        if setting not in model.settings and (value := getattr(given, setting)) != default:
            own = f"; its settings are {[*model.settings]}"
            raise ValueError(f"{name!r} has no {setting}: it must be {default!r}, got {value!r}{own}")
    return model.load(name, given, on_progress)
