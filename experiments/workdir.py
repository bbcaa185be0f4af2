"""The folder of a run: whose it is, the record of its steps, and learning that goes on where it stopped."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax
import orbax.checkpoint as ocp
from ml_collections import config_dict

from experiments import common
from ld3_jax import checkpoint, learning
from ld3_jax.disk import write_atomically
from ld3_jax.learning import Discretization, StepMetrics, Task, TrainState


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


def learn(folder: Path, task: Task, favourites: Sequence[str | Discretization], count: int) -> tuple[Task, TrainState]:
    """Learn from every start, going on where an earlier run stopped.

    Args:
        folder: the workdir.
        task: what is learned.
        favourites: where to start, the first one first; empty: at the best hand-made grids on the training pairs.
        count: how many starts.

    Returns:
        The task and the last state of the start with the best validation loss.
    """
    if not favourites:
        ranking = learning.rank_grids(task)
        print("hand-made grids on the training pairs: " + ", ".join(f"{name} {loss:.5f}" for name, loss in ranking))
        favourites = [name for name, _ in ranking]
    key, *keys = jax.random.split(task.key, count + 1)
    ends = []
    for i, fresh in enumerate(learning.starts(task, favourites, count, key)):
        label = f"start {i + 1} of {count}" if count > 1 else "learning"
        task = task._replace(key=keys[i])
        with (
            _named(folder),
            checkpoint.manager(folder / "checkpoints" / str(i)) as checkpoints,
            common.progress(label, task.learner.steps) as update,
        ):
            state = checkpoint.restore(checkpoints, fresh)
            with recording(folder, i, int(state.step), checkpoints, update) as record:
                for now in learning.steps(task, state):
                    record(*now)
                    state = now[0]
        ends.append((task, state))
    return min(ends, key=lambda end: float(end[1].best_loss))


def _open_log(path: Path, start: int, step: int) -> TextIO:
    """metrics.jsonl, open to go on after `step` of a start; later lines tell of lost steps."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that a killed process was writing
        if (record["start"], record["step"]) <= (start, step):
            kept.append(line)
    write_atomically(path, "".join(kept).encode())
    return path.open("a", buffering=1)


@contextmanager
def recording(
    workdir: Path, start: int, step: int, checkpoints: ocp.CheckpointManager, update: Callable[..., None]
) -> Iterator[Callable[[TrainState, StepMetrics], None]]:
    """Give each step a line in metrics.jsonl, a checkpoint, and the progress bar; however it ends, keep the last one.

    Steps that are over before the checkpoint of an earlier one is written get none of their own.
    """
    last: TrainState | None = None
    with _open_log(workdir / "metrics.jsonl", start, step) as log:

        @_uninterrupted()
        def record(state: TrainState, figures: StepMetrics) -> None:
            nonlocal last
            line = {"start": start, "step": int(state.step)} | {
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
            raise FloatingPointError(
                f"{error}; last good checkpoint: {workdir / 'checkpoints' / str(start)}"
            ) from error
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
