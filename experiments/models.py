"""The model that a configuration or a schedule names, and the teacher's pairs for it."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import config_dict

from experiments import common
from ld3_jax import batches, learning, pretrained
from ld3_jax.interop import imported_files
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained
from ld3_jax.teacher import Pairs, Teacher, make_pairs


def of_config(config: config_dict.ConfigDict) -> Pretrained:
    """The model of a configuration; of its prompts, as many as pairs are drawn."""
    settings = dict(config.network)
    if settings["prompts"] and not settings["num_prompts"]:
        settings["num_prompts"] = config.data.train + config.data.valid + config.data.test
    return _load(settings.pop("name"), settings)


def of_schedule(path: Path, nfe: int | None = None, moved: dict[str, Any] | None = None) -> tuple[Learned, Pretrained]:
    """Read a schedule, and load the model that it was learned for.

    Args:
        path: the schedule.json.
        nfe: read a learned curve off at so many network calls; None: the schedule as it is.
        moved: flags that say where the model's files are now. A file is downloaded only to where they say.

    Raises:
        FileNotFoundError, ValueError: see `learning.load`, `Learned.for_calls` and `pretrained.load`.
        ValueError: if the model of that name has other weights now.
    """
    learned = learning.load(path)
    record = learned.model
    if missing := [key for key in ("name", "digest") if not isinstance(record.get(key), str)]:
        raise ValueError(f"{path}: its model lacks {missing}")
    names = [field.name for field in dataclasses.fields(pretrained.Settings)]
    here = {name: flag.value for name, flag in (moved or {}).items() if flag.value}
    for name, flag in common.MOVED.items():
        if name not in here and record.get(name) and not Path(str(record[name])).exists():
            raise FileNotFoundError(
                f"{path}: no file {record[name]!s:.200}, its network.{name}; --{flag} says where it is"
            )
    model = _load(record["name"], {name: record[name] for name in names if name in record} | here)
    here = model.identity()
    other = [
        f"{key} {record[key]!s:.40}, here {here.get(key)!s:.40}"
        for key in ("digest", "decoder", "predicts")
        if key in record and here.get(key) != record[key]
    ]
    if other:
        raise ValueError(f"{path} was learned for another model {record['name']}: {'; '.join(other)}")
    try:
        if nfe is not None and nfe != learned.solver.nfe:
            learned = learning.interpolate(learning.load_several(path, model.schedule), nfe, model.schedule)
        jax.eval_shape(partial(learned.table, model.schedule))  # refuses what does not fit
        return learned, model
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def known_and_held_out(config: config_dict.ConfigDict, teacher: Teacher, model: Pretrained) -> tuple[Pairs, Pairs]:
    """The pairs to learn from, the teacher's or those of teacher.pairs, and the teacher's held-out ones.

    Raises:
        FileNotFoundError, ValueError: see `interop.imported_files.read_pairs`; and `make_pairs`.
    """
    keys, count = jax.random.split(jax.random.key(config.seed), 2), config.data.train + config.data.valid
    if config.teacher.pairs:
        known = _pairs_of_ld3(Path(config.teacher.pairs), model, count)
    else:
        known = teacher_pairs("teacher", model, teacher, keys[0], count)
    return known, teacher_pairs("teacher, held-out noise", model, teacher, keys[1], config.data.test)


def _pairs_of_ld3(path: Path, model: Pretrained, count: int) -> Pairs:
    def one() -> Pairs:
        x_T, cond = model.draw(jax.random.key(0), 1)
        return jax.tree.map(lambda leaf: leaf[0], Pairs(x_T, model.decode(x_T), cond))

    return imported_files.read_pairs(path, model.schedule, count, jax.eval_shape(one))


def teacher_pairs(label: str, model: Pretrained, teacher: Teacher, key: Array, count: int) -> Pairs:
    """The teacher's pairs from noise of that key, decoded, with a progress bar."""
    with common.progress(label, batches.equal_batches(count, teacher.batch_size)[0]) as update:
        pairs = make_pairs(
            model.model,
            model.schedule,
            *model.draw(key, count),
            teacher=teacher,
            on_batch=lambda done, total: update(done),
        )
    return pairs._replace(x_0=_decode(model.decode, pairs.x_0, teacher.batch_size))


@partial(jax.jit, static_argnums=2)
def _decode(decode: Partial, states: PyTree, batch_size: int) -> PyTree:
    return batches.in_batches(decode, states, batch_size)


def _load(name: str, settings: dict[str, Any]) -> Pretrained:
    """Load a model with a progress bar for each download and for the text."""
    with ExitStack() as bars:
        update: dict[str, Callable[..., None]] = {}

        def on_progress(label: str, done: int, total: int) -> None:
            if label not in update:
                update[label] = bars.enter_context(common.progress(label, total))
            update[label](done)

        return pretrained.load(name, on_progress=on_progress, **settings)
