"""The pictures of a run: its times, its loss, samples from the same noise."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.comparison import SQUARED_ERROR, Comparison
from experiments.run import Run
from experiments.workdir import read_log
from ld3_jax import plots
from ld3_jax.batches import to_host
from ld3_jax.grids import GRIDS, grid
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained

_ERROR_GAIN = 5
MOST = 1024  # samples in a gallery


def draw(folder: Path, run: Run, learned: Learned, compared: Comparison, start_loss: float) -> None:
    """Draw schedule.png, loss.png and samples.png."""
    model, n, title = run.model, learned.solver.n_steps, f"{run.model}, {learned.solver}"
    hand_made = {name: np.asarray(model.schedule.lam(grid(name, model.schedule, n))) for name in GRIDS}
    lines = _by_part(model, "learned", learned.t) | _by_part(model, "learned, for the network", learned.t_c)
    plots.grids(folder / "schedule.png", lines, hand_made, title)
    if steps := read_log(folder / "metrics.jsonl"):
        plots.losses(folder / "loss.png", steps, ("validation at the start", start_loss), title)
    best = compared.best_hand_made
    labels = {"learned": "learned", best: f"best hand-made:\n{best}"}
    judged = {label: compared.judged[name] for name, label in labels.items()}
    rows = {"teacher": to_host(run.pairs[1].x_0[: model.shown])} | {label: one.samples for label, one in judged.items()}
    errors = {label: one.errors[SQUARED_ERROR][: model.shown] for label, one in judged.items()}
    notes = {label: [f"{error:.4f}" for error in some] for label, some in errors.items()}
    same_noise(folder / "samples.png", model, rows, f"{title}: samples from the same noise", notes)


def same_noise(
    path: Path, model: Pretrained, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]
) -> None:
    """Rows of samples from the same noise; under those with notes, their difference from the teacher's."""
    if model.display is None:
        plots.scatter_rows(path, rows, title)
        return
    target, shown = model.display(rows["teacher"], rows["teacher"]), {}
    for row, images in rows.items():
        images = model.display(images, rows["teacher"])
        shown[row] = np.clip(images, 0, 1)
        if row in notes and model.differences:
            error = _ERROR_GAIN * np.abs(images - target)
            shown[f"{row.splitlines()[-1]}:\nerror x {_ERROR_GAIN}"] = np.clip(error, 0, 1)
    plots.image_rows(path, shown, title, notes)


def _by_part(model: Pretrained, name: str, t: np.ndarray) -> dict[str, np.ndarray]:
    """Half-log-SNR at the times; of a state of parts, one line for each, all on the scale of the first."""
    lam = np.asarray(model.schedule.lam(t))
    if lam.ndim == 1:
        return {name: lam}
    parts = [field.name for field in dataclasses.fields(model.schedule)]
    return {f"{name}: {part}": lam[:, i] for i, part in enumerate(parts)}


def gallery(path: Path, model: Pretrained, samples: np.ndarray, title: str) -> None:
    """Samples, at most MOST of them."""
    if model.display is None:
        plots.scatter_rows(path, {f"{len(samples)} samples": samples}, title)
    else:
        plots.image_grid(path, np.clip(model.display(samples, samples), 0, 1))


def png(model: Pretrained, sample: np.ndarray) -> bytes:
    """A picture of one sample, on a scale of its own."""
    return plots.png(np.clip(model.display(sample[None], sample[None])[0], 0, 1))
