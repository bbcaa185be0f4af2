"""The pre-trained models that configurations can name, each with its shape and its way to be looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.tree_util import Partial

from ld3_jax import checkpoint, plots, schedules, teacher
from ld3_jax.checkpoint import LearnedSchedule
from ld3_jax.networks import galaxy, gaussian
from ld3_jax.schedules import NoiseSchedule

_ERROR_GAIN = 5


@dataclass(frozen=True)
class PretrainedModel:
    """A noise prediction and what belongs to it.

    Attributes:
        family, name: what it is called.
        noise: model(x, t, cond) -> eps.
        schedule: its noise schedule.
        shape: of one state.
        picture: picture(path, rows, title, notes) draws rows of samples from the same noise.
        gallery: gallery(path, samples, title) draws many samples.
        shown: how many samples a row of the picture takes.
    """

    family: str
    name: str
    noise: Partial
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    picture: Callable[[Path, Mapping[str, np.ndarray], str, Mapping[str, Sequence[str]]], None]
    gallery: Callable[[Path, np.ndarray, str], None]
    shown: int

    def identity(self) -> dict[str, str]:
        """What a schedule must say of the model that it was learned for; the digest is of the weights."""
        return {"family": self.family, "name": self.name, "digest": teacher.digest(self.noise)}


def build(family: str, name: str) -> PretrainedModel:
    """Load a pre-trained model.

    Raises:
        ValueError: if the family or the name is unknown.
        FileNotFoundError: if the weights are not installed.
    """
    if family not in FAMILIES:
        raise ValueError(f"network.family must be one of {sorted(FAMILIES)}, got {family!r}")
    return FAMILIES[family](name)


def of_schedule(path: Path) -> tuple[LearnedSchedule, PretrainedModel]:
    """Read a schedule, and load the model that it was learned for.

    Raises:
        FileNotFoundError, ValueError: see `checkpoint.load_schedule` and `build`.
        ValueError: if the model of that name has other weights now.
    """
    learned = checkpoint.load_schedule(path)
    missing = [key for key in ("family", "name", "digest") if key not in learned.model]
    if missing:
        raise ValueError(f"{path}: its model lacks {missing}")
    model = build(learned.model["family"], learned.model["name"])
    if model.identity() != learned.model:
        raise ValueError(f"{path} was learned for another model: {learned.model}, here is {model.identity()}")
    return learned, model


def _galaxy(name: str) -> PretrainedModel:
    noise, schedule, shape = galaxy.load(name)

    def stretched(images: np.ndarray, white: float) -> np.ndarray:
        # The images are log(flux + 1) / 0.1, which is the stretch that galaxies are looked at in.
        return np.clip(images / white, 0, 1)

    def picture(path: Path, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]) -> None:
        target = rows["teacher"]
        white = float(np.quantile(target, 0.998))
        shown = {}
        for row, images in rows.items():
            shown[row] = stretched(images, white)
            if row in notes:
                error = _ERROR_GAIN * np.abs(images - target)
                shown[f"{row.splitlines()[-1]}:\nerror x {_ERROR_GAIN}"] = stretched(error, white)
        plots.image_rows(path, shown, title, notes)

    def gallery(path: Path, samples: np.ndarray, title: str) -> None:
        plots.image_grid(path, stretched(samples, float(np.quantile(samples, 0.998))), title)

    return PretrainedModel("galaxy", name, noise, schedule, shape, picture, gallery, shown=8)


def _gaussian(name: str) -> PretrainedModel:
    if name != "ring":
        raise ValueError(f"network.name of family 'gaussian' must be 'ring', got {name!r}")
    schedule = schedules.vp_linear()
    mixture = gaussian.ring()

    def picture(path: Path, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]) -> None:
        plots.scatter_rows(path, rows, title)

    def gallery(path: Path, samples: np.ndarray, title: str) -> None:
        plots.scatter_rows(path, {f"{len(samples)} samples": samples}, title)

    noise = gaussian.noise_model(mixture, schedule)
    return PretrainedModel("gaussian", name, noise, schedule, mixture.mean.shape[1:], picture, gallery, shown=100)


FAMILIES = {"galaxy": _galaxy, "gaussian": _gaussian}
