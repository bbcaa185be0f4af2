"""A schedule.json in use: what was learned with the model that it is for, and any number of samples drawn with it."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict

from experiments import workdir
from experiments.command import path_flag, progress
from experiments.run import load_model
from ld3_jax import interpolate, learning, pretrained
from ld3_jax.disk import digest, write_atomically
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained, drawn
from ld3_jax.pretrained.drawn import batches, contents
from ld3_jax.processes import is_first, of_first

# What a schedule's model is read from, and the flags that say where it is now.
_MOVED = {"file": "weights", "first_stage": "first_stage", "prompts": "prompts", "text_encoder": "text_encoder"}


def define_flags() -> None:
    """Define --schedule, --nfe, and flags that say where the model's files are now."""
    several = "A schedule.json that experiments.train wrote; several, separated by commas, to interpolate with --nfe."
    path_flag("schedule", None, several)
    flags.DEFINE_integer("nfe", None, "Network calls; default the schedule's own number.", lower_bound=1)
    for name, flag in _MOVED.items():
        path_flag(flag, None, f"The schedule's network.{name}, if it lies elsewhere.")


def given() -> list[Path]:
    """The files of --schedule."""
    named = flags.FLAGS.schedule
    return [Path(path) for path in ([named] if Path(named).exists() else named.split(","))]


def load_given() -> tuple[Learned, Pretrained]:
    """`load` of what the flags say."""
    here = {name: flags.FLAGS[flag].value for name, flag in _MOVED.items()}
    return load(given(), flags.FLAGS.nfe, {name: path for name, path in here.items() if path})


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
    shown, learned = ",".join(map(str, paths)), learning.load(paths[0])
    model = _load_model(shown, learned.model, here or {})
    schedule = model.schedule
    try:
        if nfe is not None:
            several = [one for path in paths for one in learning.load_several(path, schedule)]
            learned = interpolate(several, nfe, schedule)
        drawn.check_model(learned.model, model)
        jax.eval_shape(partial(learned.table, schedule))  # refuses what does not fit
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    return learned, model


def _load_model(shown: str, record: Mapping[str, Any], here: Mapping[str, str]) -> Pretrained:
    """The model of a schedule's record."""
    if missing := [key for key in ("name", "digest") if not isinstance(record.get(key), str)]:
        raise ValueError(f"{shown}: its model lacks {missing}")
    for name, flag in _MOVED.items():
        if name not in here and record.get(name) and not Path(str(record[name])).exists():
            raise FileNotFoundError(
                f"{shown}: no file {record[name]!s:.200}, its network.{name}; --{flag} says where it is"
            )
    names = [field.name for field in dataclasses.fields(pretrained.Settings)]
    return load_model(record["name"], {name: record[name] for name in names if name in record} | here)


def fill(folder: Path, learned: Learned, model: Pretrained, *, num: int, size: int, seed: int, format: str) -> None:
    """Write those batches that are not in a folder yet.

    Args:
        folder: its config.json says what it holds.
        learned, model, num, size, seed: as of `batches`.
        format: one of `drawn.formats`. Files bear the number of their first sample.

    Raises:
        ValueError: if the folder holds other samples, or another process is at work in it.
        FloatingPointError: if samples are not finite.
        OSError: if the disk does not take a file.
    """
    record = _record(learned, num=num, batch_size=size, seed=seed, format=format)
    with workdir.held(folder, record, alone=True):
        workdir.claim(folder, record)
        names = {first: _names(first, min(size, num - first), format) for first in range(0, num, size)}
        missing = of_first(np.array(_missing(folder, names)))
        firsts = [first for first, is_missing in zip(names, missing, strict=True) if is_missing]
        done = sum(min(size, num - first) for first in names if first not in set(firsts))
        with progress("samples", num) as update:
            update(done)
            for first, samples in batches(learned, model, firsts, num=num, size=size, seed=seed):
                for name, content in zip(names[first], contents(model, samples, format), strict=True):
                    write_atomically(folder / name, content)
                done += len(samples)
                update(done)


def _record(learned: Learned, **settings: Any) -> config_dict.ConfigDict:
    model, solver = dict(learned.model), dataclasses.asdict(learned.solver)
    return config_dict.ConfigDict({"model": model, "solver": solver, "learned": digest(learned.found), **settings})


def _missing(folder: Path, names: Mapping[int, list[str]]) -> list[bool]:
    """Which batches are not in the folder; what a killed process was writing is cleared away."""
    if not is_first():
        return [False] * len(names)
    ours = {name for files in names.values() for name in files}
    for part in folder.glob(".*.tmp"):  # .NAME.XXXXXXXX.tmp
        if part.name[1:].rsplit(".", 2)[0] in ours:
            part.unlink()
    here = {path.name for path in folder.iterdir()}
    return [not here.issuperset(files) for files in names.values()]


def _names(first: int, count: int, format: str) -> list[str]:
    numbers = range(first, first + count) if format == "png" else [first]
    return [f"{number:08d}.{format}" for number in numbers]
