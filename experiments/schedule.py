"""What was learned, read from a schedule.json with the model that it was learned for; and the flags that name both."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.command import path_flag
from experiments.run import load_by_name
from ld3_jax import interpolate, learning, pretrained
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained

# What a schedule's model is read from, and the flags that say where it is now.
_MOVED = {"file": "weights", "first_stage": "first_stage", "prompts": "prompts", "text_encoder": "text_encoder"}


@dataclasses.dataclass(frozen=True)
class Flags:
    """--schedule, --nfe, and those that say where the model's files are now."""

    schedule: flags.FlagHolder
    nfe: flags.FlagHolder
    moved: dict[str, flags.FlagHolder]

    @property
    def paths(self) -> list[Path]:
        """The files of --schedule."""
        given = self.schedule.value
        return [Path(path) for path in ([given] if Path(given).exists() else given.split(","))]

    def load(self) -> tuple[Learned, Pretrained]:
        """What was learned, and its model; see `load`."""
        here = {name: flag.value for name, flag in self.moved.items() if flag.value}
        return load(self.paths, self.nfe.value, here)


def define_flags() -> Flags:
    """Define them for a main."""
    several = "A schedule.json that experiments.train wrote; several, separated by commas, to interpolate with --nfe."
    return Flags(
        path_flag("schedule", None, several),
        flags.DEFINE_integer("nfe", None, "Network calls; default the schedule's own number.", lower_bound=1),
        {name: path_flag(flag, None, f"The schedule's network.{name}, if it lies elsewhere.") for name, flag in _MOVED.items()},
    )


def load(
    paths: Sequence[Path], nfe: int | None = None, here: Mapping[str, str] | None = None
) -> tuple[Learned, Pretrained]:
    """Read schedules, and load the model that they were learned for.

    Args:
        paths: the files. Several are interpolated, see `ld3_jax.interpolate`.
        nfe: for how many network calls; None: as the one file says.
        here: settings that say where the model's files are now. A file is downloaded only to where they say.

    Raises:
        FileNotFoundError, ValueError: see `learning.load`, `ld3_jax.interpolate` and `pretrained.load`.
        ValueError: if the model of that name has other weights now.
    """
    if nfe is None and len(paths) > 1:
        raise ValueError(f"{len(paths)} schedules are interpolated: --nfe says for how many network calls")
    several = [(path, one) for path in paths for one in ([learning.load(path)] if nfe is None else learning.load_several(path))]
    model = _load_model(*several[0], here or {})
    for path, one in several:
        _check_model(path, one.model, model)
    shown = ",".join(map(str, paths))
    try:
        learned = several[0][1] if nfe is None else interpolate([one for _, one in several], nfe, model.schedule)
        jax.eval_shape(partial(learned.table, model.schedule))  # refuses what does not fit
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    return learned, model


def _load_model(path: Path, learned: Learned, here: Mapping[str, str]) -> Pretrained:
    record = learned.model
    if missing := [key for key in ("name", "digest") if not isinstance(record.get(key), str)]:
        raise ValueError(f"{path}: its model lacks {missing}")
    for name, flag in _MOVED.items():
        if name not in here and record.get(name) and not Path(str(record[name])).exists():
            raise FileNotFoundError(
                f"{path}: no file {record[name]!s:.200}, its network.{name}; --{flag} says where it is"
            )
    names = [field.name for field in dataclasses.fields(pretrained.Settings)]
    return load_by_name(record["name"], {name: record[name] for name in names if name in record} | here)


def _check_model(path: Path, record: Mapping[str, Any], model: Pretrained) -> None:
    here = model.identity()
    other = [
        f"{key} {record[key]!s:.40}, here {here.get(key)!s:.40}"
        for key in ("digest", "decoder", "predicts")
        if key in record and here.get(key) != record[key]
    ]
    if other:
        raise ValueError(f"{path} was learned for another model {record.get('name')}: {'; '.join(other)}")
