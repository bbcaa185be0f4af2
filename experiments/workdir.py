"""The folder of a run: whose it is, the record of its steps, and learning that goes on where it stopped."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import orbax.checkpoint as ocp
from ml_collections import config_dict

from experiments import common
from ld3_jax import checkpoint, learning
from ld3_jax.disk import write_atomically
from ld3_jax.learning import Discretization, Ended, StepMetrics, Task, TrainState


def claim(workdir: Path, config: config_dict.ConfigDict) -> None:
    """Make the workdir this configuration's own, or find that it already is."""
    path = workdir / "config.json"
    mine = json.loads(json.dumps(config.to_dict()))  # as it reads back: a tuple is a list
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from error
        if different := common.differences(there, mine):
            raise ValueError(f"{workdir} holds another configuration: {'; '.join(different)}. Take another --workdir.")
    write_atomically(path, (json.dumps(mine, indent=2, sort_keys=True) + "\n").encode())


def learn(folder: Path, task: Task, start: str | Discretization) -> Ended:
    """`learning.learn` that goes on where an earlier run stopped, with a progress bar, a record and checkpoints."""

    def advance(name: str, state: TrainState, until: int) -> TrainState:
        begun = int(state.step)
        label = "learning" if until == task.learner.steps else f"race: {name}"
        with (
            _named(folder),
            checkpoint.manager(folder / "checkpoints" / f"{until}-{name.replace(' ', '-')}") as checkpoints,
            common.progress(label, until - begun) as update,
        ):
            state = checkpoint.restore(checkpoints, state)
            leg = _Leg(name, int(state.step), until)
            with recording(folder, leg, checkpoints, lambda step, **shown: update(step - begun, **shown)) as record:
                for now in learning.steps(task, state, until):
                    record(*now)
                    state = now[0]
        return state

    return learning.learn(task, start, advance)


def report(folder: Path, ended: Ended, seconds: Mapping[str, float]) -> None:
    """Print which start won and by how much, and what learning cost; and write it to report.json."""
    for heat in ended.heats:
        print(f"race, step {heat.step}: " + ", ".join(f"{name} {loss:.5f}" for name, loss in heat.losses.items()))
    before, after = float(ended.state.start_loss), float(ended.state.best_loss)
    print(f"started from {ended.start}; loss on the pairs {before:.5f} at the start, {after:.5f} learned")
    print(
        ", ".join(f"{part} {time:.1f} s" for part, time in seconds.items())
        + f"; {ended.network_calls:,} network calls to learn",
        flush=True,
    )
    record = {
        "start": ended.start,
        "starts": {start.name: start.loss for start in ended.ranked},
        "race": [heat._asdict() for heat in ended.heats],
        "loss": {"start": before, "learned": after},
        "network_calls": ended.network_calls,
        "seconds": dict(seconds),
    }
    write_atomically(folder / "report.json", (json.dumps(record, indent=2) + "\n").encode())


class _Leg(NamedTuple):
    """The steps that a start takes at a stretch."""

    start: str
    done: int
    until: int


def _open_log(path: Path, leg: _Leg) -> TextIO:
    """metrics.jsonl, open to go on with a leg; later lines of the leg tell of lost steps."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that a killed process was writing
        if record["start"] != leg.start or not leg.done < record["step"] <= leg.until:
            kept.append(line)
    write_atomically(path, "".join(kept).encode())
    return path.open("a", buffering=1)


@contextmanager
def recording(
    workdir: Path, leg: _Leg, checkpoints: ocp.CheckpointManager, update: Callable[..., None]
) -> Iterator[Callable[[TrainState, StepMetrics], None]]:
    """Give each step a line in metrics.jsonl, a checkpoint, and the progress bar; however it ends, keep the last one.

    Steps that are over before the checkpoint of an earlier one is written get none of their own.
    """
    last: TrainState | None = None
    with _open_log(workdir / "metrics.jsonl", leg) as log:

        @_uninterrupted()
        def record(state: TrainState, figures: StepMetrics) -> None:
            nonlocal last
            line = {"start": leg.start, "step": int(state.step)} | {
                name: float(value)
                for name, value in (
                    ("loss", figures.loss),
                    ("valid_loss", state.valid_loss),
                    ("best_loss", state.best_loss),
                    ("grad_norm", figures.grad_norm),
                    ("moved", figures.moved),
                )
            }
            last = state
            log.write(json.dumps(line) + "\n")
            checkpoint.save(checkpoints, line["step"], state)
            update(line["step"], loss=line["loss"], best=line["best_loss"])

        try:
            yield record
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; last good checkpoint: {checkpoints.directory}") from error
        finally:
            if last is not None:
                with _uninterrupted():
                    checkpoint.save(checkpoints, int(last.step), last, wait=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is over: Orbax loses it, or leaves a checkpoint that cannot be finished."""
    came = False

    def remember(*_: object) -> None:
        nonlocal came
        came = True

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _named(workdir: Path) -> Iterator[None]:
    """An error of the disk names the workdir."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {workdir}: {error.strerror or error}") from error
