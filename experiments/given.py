"""Schedules that the command line names, each with the model that it was learned for."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.command import path_flag
from experiments.configuration import naming
from experiments.run import load_model
from ld3_jax import interpolate, learning, pretrained, starting_at, starts
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained, drawn, starting
from ld3_jax.teacher import Teacher

# The files of a schedule's model, and the flags that say where they are now.
_MOVED = {"file": "weights", "first_stage": "first_stage", "prompts": "prompts", "text_encoder": "text_encoder"}
_TEACHER = Teacher()


def define_flags() -> None:
    """Define --schedule, --nfe, and flags that say where the model's files are now."""
    several = "A schedule.json that experiments.train wrote; several, separated by commas, to interpolate with --nfe."
    path_flag("schedule", None, several)
    flags.DEFINE_integer("nfe", None, "Network calls; by default the schedule's own number.", lower_bound=1)
    images = "For a schedule that starts below full noise: images (.npy, .npz or a folder); by default the teacher's."
    path_flag("images", None, images)
    flags.DEFINE_string("start", None, "For schedules with several starts, with --nfe: t=, sigma= or strength=NUMBER.")
    for name, flag in _MOVED.items():
        path_flag(flag, None, f"The schedule's network.{name}, if it lies elsewhere.")


def files() -> list[Path]:
    """The files of --schedule: one, or with --nfe several."""
    named = flags.FLAGS.schedule
    paths = [named] if Path(named).exists() else named.split(",")
    if not all(paths):
        raise ValueError(f"--schedule={named}: a file's name must not be empty")
    if flags.FLAGS.nfe is None and flags.FLAGS.start is not None:
        raise ValueError(f"--start={flags.FLAGS.start} is for schedules that are interpolated, with --nfe")
    if flags.FLAGS.nfe is None and len(paths) > 1:
        raise ValueError(f"{len(paths)} schedules are interpolated: --nfe says for how many network calls")
    return [Path(path) for path in paths]


def load(teacher: Teacher = _TEACHER) -> tuple[Learned, Pretrained]:
    """The schedules and the model that the flags name; see `read`.

    Args:
        teacher: how images are made if none are given, for a schedule that starts below full noise.
    """
    here = {name: flags.FLAGS[flag].value for name, flag in _MOVED.items()}
    here = {name: path for name, path in here.items() if path}
    learned, model = read(files(), flags.FLAGS.nfe, here, teacher, flags.FLAGS.start)
    if images := flags.FLAGS.images:
        if learned.t_start is None:
            raise ValueError(f"--images={images}: {flags.FLAGS.schedule} starts at full noise, from no images")
        with naming("--images"):
            model = dataclasses.replace(model, images=starting.of_states(starting.read(Path(images), model.shape)))
    return learned, model


def read(
    paths: Sequence[Path],
    nfe: int | None = None,
    here: Mapping[str, str] | None = None,
    teacher: Teacher = _TEACHER,
    start: str | None = None,
) -> tuple[Learned, Pretrained]:
    """Read schedules, and load the model that they were learned for.

    Args:
        paths: the files. Several are interpolated, see `ld3_jax.interpolate`.
        nfe: the number of network calls; None: the number in the only file.
        here: settings that say where the model's files are now. Files are downloaded only to these places.
        teacher: it makes the images of a schedule that starts below full noise.
        start: with nfe, the start, in the form of `solver.start`; None: the start of all files.

    Returns:
        The learned schedule, and its model with the same start.

    Raises:
        FileNotFoundError, ValueError: see `learning.load`, `ld3_jax.interpolate` and `pretrained.load`.
        ValueError: if the model of that name has other weights now.
    """
    shown, learned = ",".join(map(str, paths)), learning.load(paths[0])
    model = _model_of(shown, learned.model, here or {})
    schedule = model.schedule
    try:
        if nfe is not None:
            several = [one for path in paths for one in learning.load_several(path, schedule)]
            t_start = starting_at(schedule, **starts.parse(start)).t_start if start else None
            learned = interpolate(several, nfe, schedule, t_start=t_start)
        drawn.check_model(learned.model, model)
        jax.eval_shape(partial(learned.table, schedule))  # refuses a model that does not fit
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    if learned.t_start is not None:
        model = model.starting_at(starting.by_teacher(model, teacher), learned.t_start)
    return learned, model


def _model_of(shown: str, record: Mapping[str, Any], here: Mapping[str, str]) -> Pretrained:
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
