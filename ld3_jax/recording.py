"""Learning that continues where it stopped: a folder with a line for each step, and checkpoints."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ld3_jax import checkpoint, learning
from ld3_jax.disk import naming, write_atomically
from ld3_jax.learning import Discretization, Ended, StepMetrics, Task, TrainState
from ld3_jax.learning.ranking import Watch, unwatched
from ld3_jax.learning.task import Taken
from ld3_jax.processes import is_first

LOG = "metrics.jsonl"
_FIGURES = ("loss", "valid_loss", "best_loss", "grad_norm", "moved")
_SAVE_EVERY_S = 5.0


def learn(
    folder: Path,
    task: Task,
    start: str | Discretization = "best",
    watch: Watch = unwatched,
) -> Ended:
    """`learning.learn` that continues where an earlier run in the same folder stopped; the result is the same.

    Args:
        folder: where metrics.jsonl and the checkpoints go; another task needs another folder.
        task: the learning task.
        start: see `learning.fit`.
        watch: watch(label, steps), a context manager for learning and for the steps by which two close starts are
            compared; what it yields is called after each step.

    Raises:
        FloatingPointError: if a loss is not finite; it names the step and the last good checkpoint.
        OSError: if a file cannot be written to the disk.
    """

    def advance(state: TrainState, taken: Taken) -> TrainState:
        with watch("learning", task.learner.steps) as update:
            state = checkpoint.restore(folder / "checkpoints", state)
            with _recording(folder, int(state.step)) as record:
                for now, figures in learning.steps(task, state, taken):
                    shown, state = record(now, figures), now
                    update(int(now.step), loss=shown["loss"], best=shown["best_loss"])
        return state

    return learning.learn(task, start, advance, watch)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a killed process was writing is left out.

    Raises:
        ValueError: if another line is not the record of a step.
    """
    records = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
            figures = {name: float(record[name]) for name in _FIGURES}
            records.append({"step": int(record["step"]), **figures})
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            if line.endswith(b"\n"):
                raise ValueError(
                    f"{path}: line {len(records) + 1} is not the record of a step ({error}); learning "
                    "continues without the file if you move it away"
                ) from error
    return records


def _open_log(path: Path, done: int) -> TextIO:
    """metrics.jsonl, open to continue after a step; lines of later steps, which are lost, are left out."""
    if not is_first():
        return open(os.devnull, "a")
    kept = [line for line in read_log(path) if line["step"] <= done]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return path.open("a", buffering=1)


@contextmanager
def _recording(folder: Path, done: int) -> Iterator[Callable[[TrainState, StepMetrics], dict[str, float]]]:
    """Give each step a line in metrics.jsonl; save a checkpoint from time to time, and after the last step."""
    last: TrainState | None = None
    path, checkpoints, saved = folder / LOG, folder / "checkpoints", time.monotonic()
    with _open_log(path, done) as log:

        def record(state: TrainState, figures: StepMetrics) -> dict[str, float]:
            nonlocal last, saved
            values = {**state._asdict(), **figures._asdict()}
            step, shown = int(state.step), {name: float(values[name]) for name in _FIGURES}
            with naming(path):
                log.write(json.dumps({"step": step, **shown}) + "\n")
            last = state
            if time.monotonic() - saved > _SAVE_EVERY_S:
                checkpoint.save(checkpoints, step, state)
                saved = time.monotonic()
            return shown

        try:
            yield record
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; last good checkpoint: {checkpoints}") from error
        finally:
            if last is not None:
                checkpoint.save(checkpoints, int(last.step), last)
