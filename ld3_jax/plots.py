"""Pictures of a run: the grids, the loss, the samples."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ld3_jax.disk import write_atomically
from ld3_jax.grids import GRIDS

_PIXELS, _GAP = 128, 4  # the side of an image in a sheet, and the gap between images
_LEARNED, _START = ("#c8102e", "#e07b00", "#7a0019"), "#404040"
_COLORS = ("#4c72b0", "#55a868", "#8172b3", "#c28e3a", "#64b5cd", "#937860")


def grids(path: Path, learned: Mapping[str, np.ndarray], standard: Mapping[str, np.ndarray], title: str) -> None:
    """Half-log-SNR of each grid's points, step by step.

    Args:
        path: where to write a PNG.
        learned: name -> (n + 1,) lam; the first half is drawn as lines, the second as crosses (network times).
        standard: name -> (n + 1,) lam.
        title: the title of the picture.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, lam in standard.items():
        axes.plot(lam, "o--", color=_color_of_grid(name), label=name, markersize=4, linewidth=1, alpha=0.8)
    count = -(-len(learned) // 2)
    for i, (name, lam) in enumerate(learned.items()):
        style = {"marker": "o", "linewidth": 2.2} if i < count else {"marker": "x", "linewidth": 0, "markersize": 9}
        axes.plot(lam, color=_LEARNED[i % count], label=name, zorder=5, **style)
    axes.set(xlabel="step", ylabel="half-log-SNR  (noise \N{RIGHTWARDS ARROW} data)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def losses(path: Path, steps: Sequence[dict], baseline: tuple[str, float], title: str) -> None:
    """Training and validation loss over the steps, on a log axis; for starts that dropped out, only the training loss.

    Args:
        path: where to write a PNG.
        steps: lines of metrics.jsonl, with "start", "step", "loss", "valid_loss".
        baseline: a name and a validation loss to draw as a level: the start.
        title: the title of the picture.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    winner = max(steps, key=lambda line: line["step"])["start"]
    others, own = sorted({line["start"] for line in steps} - {winner}), []
    for name in [*others, winner]:
        own = sorted((line for line in steps if line["start"] == name), key=lambda line: line["step"])
        x, losses = [line["step"] for line in own], [line["loss"] for line in own]
        axes.semilogy(x, losses, color=_color_of_grid(name), linewidth=1, label=f"training batch, from {name}")
    x, losses = ([line[name] for line in _validations(own, baseline[1])] for name in ("step", "valid_loss"))
    axes.semilogy(x, losses, "o-", color=_LEARNED[0], linewidth=2, markersize=4, label="validation")
    axes.axhline(baseline[1], color=_START, linestyle="--", linewidth=1, label=baseline[0])
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    _save(figure, path)


def training(path: Path, lines: Sequence[dict]) -> None:
    """Training and held-out loss of a network over the steps, on log axes.

    Args:
        path: where to write a PNG.
        lines: with "step", "loss", "held_out".
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in lines]
    axes.plot(steps, [line["loss"] for line in lines], color=_START, label="training")
    axes.plot(steps, [line["held_out"] for line in lines], color=_LEARNED[0], label="held-out, moving average")
    axes.set(xlabel="step", ylabel="loss", xscale="log", yscale="log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    _save(figure, path)


def _validations(own: Sequence[dict], start: float) -> list[dict]:
    """The steps that a validation followed. Before a race is won, steps show the start's loss on some pairs only."""
    raced = any(line["valid_loss"] == start for line in own)
    of_start = {start, own[0]["valid_loss"]} if raced else {start}
    changed = [b for a, b in pairwise([{"valid_loss": start}, *own]) if a["valid_loss"] != b["valid_loss"]]
    return [line for line in changed if line["valid_loss"] not in of_start]


def image_rows(path: Path, rows: Mapping[str, np.ndarray], title: str, notes: Mapping[str, Sequence[str]]) -> None:
    """Rows of images from the same noise, side by side.

    Args:
        path: where to write a PNG.
        rows: name -> (n, height, width, 1 or 3) images, clipped to [0, 1].
        title: the title of the picture.
        notes: name of a row -> a short text under each of its images, for instance a loss.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.25 * count + 1.2, 1.5 * len(rows) + 0.5), layout="constrained")
    for axes_row, (name, images) in zip(figure.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        for i, (axes, image) in enumerate(zip(axes_row, images, strict=True)):
            _show(axes, image)
            axes.set_xlabel(notes[name][i] if name in notes else "", fontsize=7, labelpad=2)
        axes_row[0].set_ylabel(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def image_grid(path: Path, images: np.ndarray) -> None:
    """Images in a square arrangement, pixel by pixel; small ones are enlarged.

    Args:
        path: where to write a PNG.
        images: (n, height, width, 1 or 3), clipped to [0, 1].
    """
    n, height, width, _ = images.shape
    side = math.ceil(math.sqrt(n))
    scale = max(1, _PIXELS // max(height, width))
    shown = _colours(images).repeat(scale, 1).repeat(scale, 2)
    shown = np.pad(shown, ((0, -n % side), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    rows = shown.reshape(-1, side, *shown.shape[1:]).swapaxes(1, 2)
    sheet = rows.reshape(len(rows) * rows.shape[1], -1, 3)
    sheet = np.pad(sheet, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)
    write_atomically(Path(path), _png(sheet))


def png(image: np.ndarray) -> bytes:
    """A PNG of an image (height, width, 1 or 3), clipped to [0, 1], pixel by pixel."""
    return _png(_colours(image))


def scatter_rows(path: Path, rows: Mapping[str, np.ndarray], title: str) -> None:
    """Point clouds in the plane, side by side; the axes fit the first one.

    Args:
        path: where to write a PNG.
        rows: name -> (n, 1 or more) points; the first two coordinates are drawn, or a single one over n heights.
        title: the title of the picture.
    """
    figure = Figure(figsize=(max(3.2 * len(rows), 5.5), 4), layout="constrained")  # wide enough for the title
    most = max(1.6, 1.2 * float(np.abs(next(iter(rows.values()))).max()))
    for axes, (name, points) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        x, y = points[:, 0], points[:, 1] if points.shape[1] > 1 else np.linspace(-most, most, len(points))
        axes.scatter(x, y, s=5, color=_COLORS[0], alpha=0.6)
        axes.set(title=name, aspect="equal", xlim=(-most, most), ylim=(-most, most))
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _color_of_grid(name: str) -> str:
    """The colour of a grid, the same in all pictures, for a name that begins with the grid's name."""
    grids, grid = list(GRIDS), name.split()[0]
    return _COLORS[grids.index(grid) if grid in grids else len(grids)]


def _colours(images: np.ndarray) -> np.ndarray:
    images = np.clip(images, 0, 1)
    shown = colormaps["magma"](images[..., 0])[..., :3] if images.shape[-1] == 1 else images
    return (255 * shown + 0.5).astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def _show(axes: Axes, image: np.ndarray) -> None:
    gray, image = image.shape[-1] == 1, np.clip(image, 0, 1)
    axes.imshow(image[..., 0] if gray else image, cmap="magma" if gray else None, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(Path(path), buffer.getvalue())
