"""The folder of a run, or of samples: its owner, its report, pictures, and files that are not made twice."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from ml_collections import config_dict

from experiments import ending
from experiments.certainty import Certainty
from experiments.command import progress
from experiments.configuration import differences
from experiments.run import Run
from ld3_jax import plots
from ld3_jax.batches import to_host
from ld3_jax.comparison import SQUARED_ERROR, Comparison
from ld3_jax.disk import check_writable, digest, read_json, write_atomically
from ld3_jax.grids import GRIDS, grid
from ld3_jax.learning import Ended, Learned
from ld3_jax.pretrained import Pretrained
from ld3_jax.pretrained.drawn import batches, contents
from ld3_jax.processes import is_first, of_first
from ld3_jax.recording import LOG, read_log

_ERROR_GAIN = 5  # factor on differences from the teacher's samples in pictures
FILES = ("schedule.json", "schedule.png", "loss.png", "samples.png", "metrics.jsonl", "report.json")


@contextmanager
def held(workdir: Path, config: config_dict.ConfigDict, *, alone: bool = False) -> Iterator[None]:
    """Lock a workdir against other processes, if no other configuration has claimed it.

    Raises:
        ValueError: if another process holds it, it has another configuration, or it is unclaimed and has files with
            names that are written here (or any files, if it is to be `alone`).
        OSError: if it cannot be written to, or is deleted in the meantime.
    """
    path = workdir / "config.json"
    check_writable(path)
    if is_first() and not path.exists():
        there = {*os.listdir(workdir)}
        if theirs := there - {".lock"} if alone else there & {*FILES}:
            raise ValueError(f"{workdir} holds files of others: {sorted(theirs)[:5]}. Take another folder.")
    with _locked(workdir) if is_first() else nullcontext():
        if path.exists():
            there = read_json(path)
            if not isinstance(there, dict):
                raise ValueError(f"{path}: not a configuration; take another folder")
            mine = _plain(config)
            there = {name: mine[name] for name in ("contents",) if name in mine} | there  # earlier versions wrote none
            if different := differences(there, mine):
                raise ValueError(f"{workdir} holds another configuration: {'; '.join(different)}. Take another folder.")
        yield
        if is_first() and not (workdir / ".lock").exists():
            raise OSError(f"{workdir} was deleted meanwhile; the same command makes what was in it again")


def _locked(workdir: Path) -> AbstractContextManager:
    lock = filelock.FileLock(workdir / ".lock")  # the system frees it when the process ends in any way
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ValueError(f"another process is at work in {workdir}; wait for it, or take another folder") from error


def claim(workdir: Path, config: config_dict.ConfigDict) -> None:
    """Claim the workdir for this configuration, once the configuration has been checked completely."""
    write_atomically(workdir / "config.json", (json.dumps(_plain(config), indent=2, sort_keys=True) + "\n").encode())


def _plain(config: config_dict.ConfigDict) -> dict[str, Any]:
    """A configuration as it is read back: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


@contextmanager
def watched(label: str, total: int) -> Iterator[Callable[..., None]]:
    """`progress` for steps of learning: a signal ends them after the current step, once it is on the disk."""
    with progress(label, total) as update:

        def after_step(done: int, **figures: float) -> None:
            ending.waits = True
            update(done, **figures)
            if ending.number:
                raise KeyboardInterrupt

        try:
            yield after_step
        finally:
            ending.waits = False
    if ending.number:
        raise KeyboardInterrupt


def report(folder: Path, ended: Ended, seconds: Mapping[str, float]) -> None:
    """Print what learning started from and reached, and what it cost; and write it to report.json.

    The seconds include earlier parts of the run that were interrupted after a step, but not killed. If nothing was
    learned, because the run had already ended, they are the seconds of that run.
    """
    path = folder / "report.json"
    earlier = _read_report(path)
    before, after = float(ended.state.start_loss), float(ended.state.best_loss)
    record = {
        "start": ended.start,
        "starts": {start.name: start.loss for start in ended.ranked},
        "tried": ended.tried,
        "loss": {"start": before, "learned": after},
        "network_calls": ended.network_calls,
    }
    if json.dumps(record) == json.dumps({key: earlier.get(key) for key in record}):
        seconds = earlier["seconds"]
    else:
        seconds = _sum(earlier, seconds)
        _write_report(path, record | {"seconds": seconds})
    if ended.tried:
        losses = ", ".join(f"{name} {loss:.5f}" for name, loss in ended.tried.items())
        print(f"two starts were close; their losses after a few steps: {losses}")
    print(f"started from {ended.start}; loss on the pairs {before:.5f} at the start, {after:.5f} learned")
    print(
        ", ".join(f"{part} {time:.1f} s" for part, time in seconds.items())
        + f"; {ended.network_calls:,} network calls to learn",
        flush=True,
    )


def report_certainty(folder: Path, found: Certainty) -> None:
    """Print how sure the result is, and add it to report.json."""
    path = folder / "report.json"
    _write_report(path, _read_report(path) | {"certainty": found._asdict()})
    print(*found.lines(), sep="\n", flush=True)


@contextmanager
def keeping_seconds(folder: Path, seconds: Mapping[str, float]) -> Iterator[None]:
    """Write the seconds of an unfinished run to report.json if the block raises an error, so that it can continue."""
    try:
        yield
    except BaseException:
        path = folder / "report.json"
        if "network_calls" not in (earlier := _read_report(path)):
            with suppress(OSError):  # the error to report is the block's
                _write_report(path, {"seconds": _sum(earlier, seconds)})
        raise


def _read_report(path: Path) -> dict[str, Any]:
    """The content of report.json; only seconds for an unfinished run, empty if there is none."""
    try:
        record = read_json(path)
        return record if isinstance(record["seconds"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _write_report(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def _sum(earlier: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each part; nothing is added to a finished run."""
    known = {} if "network_calls" in earlier else earlier.get("seconds", {})
    return {part: known.get(part, 0.0) + time for part, time in seconds.items()}


def draw(folder: Path, run: Run, learned: Learned, compared: Comparison, start_loss: float) -> None:
    """Draw schedule.png, loss.png and samples.png."""
    model, n, title = run.model, learned.solver.n_steps, f"{run.model}, {learned.solver}"
    standard = {name: np.asarray(model.schedule.lam(grid(name, model.schedule, n))) for name in GRIDS}
    lines = _by_part(model, "learned", learned.t) | _by_part(model, "learned, for the network", learned.t_c)
    plots.grids(folder / "schedule.png", lines, standard, title)
    if steps := read_log(folder / LOG):
        plots.losses(folder / "loss.png", steps, ("validation at the start", start_loss), title)
    best = compared.best_standard
    labels = {"learned": "learned", best: f"best standard grid:\n{best}"}
    judged = {label: compared.judged[name] for name, label in labels.items()}
    rows = {"teacher": to_host(run.pairs[1].x_0[: model.shown])} | {label: one.samples for label, one in judged.items()}
    errors = {label: one.errors[SQUARED_ERROR][: model.shown] for label, one in judged.items()}
    notes = {label: [f"{error:.4f}" for error in some] for label, some in errors.items()}
    samples, title = folder / "samples.png", f"{title}: samples from the same noise"
    if model.display is None:
        plots.scatter_rows(samples, rows, title)
    else:
        images = {label: model.display(one, rows["teacher"]) for label, one in rows.items()}
        plots.image_rows(samples, _with_differences(images, "teacher") if model.differences else images, title, notes)


def _by_part(model: Pretrained, name: str, t: np.ndarray) -> dict[str, np.ndarray]:
    """Half-log-SNR at the times; one line for each part of a state, all on the scale of the first."""
    lam = np.asarray(model.schedule.lam(t))
    if lam.ndim == 1:
        return {name: lam}
    parts = [field.name for field in dataclasses.fields(model.schedule)]
    return {f"{name}: {part}": lam[:, i] for i, part in enumerate(parts)}


def _with_differences(rows: Mapping[str, np.ndarray], of: str) -> dict[str, np.ndarray]:
    """Add below each other row of images its difference from one of them."""
    shown = {}
    for name, images in rows.items():
        shown[name] = images
        if name != of:
            shown[f"{name.splitlines()[-1]}:\nerror x {_ERROR_GAIN}"] = _ERROR_GAIN * np.abs(images - rows[of])
    return shown


def fill(folder: Path, learned: Learned, model: Pretrained, *, num: int, size: int, seed: int, format: str) -> None:
    """Write the batches that are not in a folder yet.

    Args:
        folder: its config.json says what it holds.
        learned, model, num, size, seed: as in `batches`.
        format: one of `drawn.formats`. A file's name is the number of its first sample.

    Raises:
        ValueError: if the folder holds other samples, or another process is at work in it.
        FloatingPointError: if samples are not finite.
        OSError: if a file cannot be written to the disk.
    """
    record = _record(learned, num=num, batch_size=size, seed=seed, format=format)
    if jax.tree.leaves(model.images):  # given images
        record["images"] = digest(model.images)
    with held(folder, record, alone=True):
        claim(folder, record)
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
    return config_dict.ConfigDict(
        {"model": model, "solver": solver, "learned": digest(learned.discretization), **settings}
    )


def _missing(folder: Path, names: Mapping[int, list[str]]) -> list[bool]:
    """Which batches are not in the folder; partial files of a killed process are removed."""
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
