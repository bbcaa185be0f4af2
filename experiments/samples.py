"""Any number of samples, batch by batch, in memory that does not grow with their number; into a folder if asked to."""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from experiments import pictures, workdir
from experiments.command import progress
from ld3_jax.batches import check_finite, to_host
from ld3_jax.disk import digest, write_atomically
from ld3_jax.learning import Learned
from ld3_jax.learning.task import make_student, run_in_batches
from ld3_jax.pretrained import Pretrained
from ld3_jax.processes import is_first, of_first


def batches(
    learned: Learned, model: Pretrained, firsts: Iterable[int], *, num: int, size: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw batches, one on the devices while the one before is yielded.

    Args:
        learned: what to sample with.
        model: the model that it was learned for.
        firsts: the number of each batch's first sample.
        num: how many samples there are in all; the last batch is cut there.
        size: of a batch.
        seed: of the noise. Seed and number fix a sample's noise and condition.

    Yields:
        The number of a batch's first sample, and the samples, decoded, on the host.

    Raises:
        FloatingPointError: if samples are not finite; it says which.
    """
    student = make_student(model.model, model.schedule, learned.solver, decode=model.decode)
    key, drawn = jax.random.key(seed), None
    for first in firsts:
        now = first, run_in_batches(student, learned.found, *model.draw(key, size, first), batch_size=size)
        if drawn:
            yield _to_host(*drawn, num)
        drawn = now
    if drawn:
        yield _to_host(*drawn, num)


def formats(model: Pretrained) -> list[str]:
    """The formats of files in a folder; see `fill`."""
    return ["npz", *(["png"] if model.display else []), *(ending[1:] for ending in model.formats)]


def fill(folder: Path, learned: Learned, model: Pretrained, *, num: int, size: int, seed: int, format: str) -> None:
    """Write those batches that are not in a folder yet.

    Args:
        folder: its config.json says what it holds.
        learned, model, num, size, seed: as of `batches`.
        format: "png": a picture of each sample, on a scale of its own; "npz": a batch as the array `samples`; or one
            of the model's own formats, a file for each batch. Files bear the number of their first sample.

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
                for name, content in zip(names[first], _contents(model, samples, format), strict=True):
                    write_atomically(folder / name, content)
                done += len(samples)
                update(done)


def _to_host(first: int, samples: jax.Array, num: int) -> tuple[int, np.ndarray]:
    samples = samples[: num - first]
    check_finite(samples, "a batch of samples", first=first)
    return first, to_host(samples)


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


def _contents(model: Pretrained, samples: np.ndarray, format: str) -> list[bytes]:
    if format == "png":
        return [pictures.png(model, sample) for sample in samples]
    if format == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, samples=samples)
        return [buffer.getvalue()]
    return [model.formats[f".{format}"](samples)]
