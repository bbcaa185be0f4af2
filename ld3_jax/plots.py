"""Pictures of a run: the grids, the loss, the samples, the states on the way.

Each function writes a file, or with None in place of its path none, and returns the picture, which a notebook shows.
"""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from ld3_jax.disk import write_atomically
from ld3_jax.grids import GRIDS

Numbers = np.ndarray | Array

_PIXELS, _GAP = 128, 4  # the side of an image in a sheet, and the gap between images
_FRAME_DPI, _FRAME_MS, _FRAME_COLORS = 75, 900, 32  # an animation; a GIF of noise is large
_PANEL, _LABEL, _LINE = 96, 150, 24  # its images: the longest side, the width of their names, the height of a title
_LEARNED, _START = ("#c8102e", "#e07b00", "#7a0019"), "#404040"
_NO_NOTES: Mapping[str, Sequence[str]] = {}
_COLORS = ("#4c72b0", "#55a868", "#8172b3", "#c28e3a", "#64b5cd", "#937860")


def grids(
    path: Path | None, learned: Mapping[str, Numbers], standard: Mapping[str, Numbers], title: str
) -> Image.Image:
    """Half-log-SNR of each grid's points, step by step.

    Args:
        path: where to write a PNG, or None.
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
    return _save(figure, path)


def losses(path: Path | None, steps: Sequence[dict], baseline: tuple[str, float], title: str) -> Image.Image:
    """Training and validation loss over the steps, on a log axis.

    Args:
        path: where to write a PNG, or None.
        steps: lines of metrics.jsonl, with "step", "loss", "valid_loss".
        baseline: a name and a validation loss to draw as a level: the start.
        title: the title of the picture.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    validated = _validations(steps, baseline[1])
    of_validation = {"color": _LEARNED[0], "linewidth": 2, "marker": "o", "markersize": 4}
    _curve(axes, steps, "loss", label="training batch", color=_LEARNED[1], linewidth=1)
    _curve(axes, validated, "valid_loss", label="validation", **of_validation)
    axes.set_yscale("log")
    axes.axhline(baseline[1], color=_START, linestyle="--", linewidth=1, label=baseline[0])
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    return _save(figure, path)


def training(path: Path, lines: Sequence[dict]) -> None:
    """Training and held-out loss of a network over the steps, on log axes.

    Args:
        path: where to write a PNG.
        lines: with "step", "loss", "held_out".
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _curve(axes, lines, "loss", color=_START, label="training")
    _curve(axes, lines, "held_out", color=_LEARNED[0], label="held-out, moving average")
    axes.set(xlabel="step", ylabel="loss", xscale="log", yscale="log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    _save(figure, path)


def _curve(axes: Axes, lines: Sequence[dict], name: str, **style: Any) -> None:
    axes.plot([line["step"] for line in lines], [line[name] for line in lines], **style)


def _validations(steps: Sequence[dict], start: float) -> list[dict]:
    """The steps that a validation followed: the validation loss differs from that of the step before."""
    return [b for a, b in pairwise([{"valid_loss": start}, *steps]) if a["valid_loss"] != b["valid_loss"]]


def image_rows(
    path: Path | None, rows: Mapping[str, Numbers], title: str, notes: Mapping[str, Sequence[str]] = _NO_NOTES
) -> Image.Image:
    """Rows of images from the same noise, side by side.

    Args:
        path: where to write a PNG, or None.
        rows: name -> (n, height, width, 1 or 3) images, clipped to [0, 1].
        title: the title of the picture.
        notes: name of a row -> a short text under each of its images, for instance a loss.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.25 * count + 1.2, 1.5 * len(rows) + 0.5), layout="constrained")
    for axes_row, (name, images) in zip(figure.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        for i, (axes, image) in enumerate(zip(axes_row, np.asarray(images), strict=True)):
            _show(axes, image)
            axes.set_xlabel(notes[name][i] if name in notes else "", fontsize=7, labelpad=2)
        axes_row[0].set_ylabel(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def image_grid(path: Path | None, images: Numbers) -> Image.Image:
    """Images in a square arrangement, pixel by pixel; small ones are enlarged.

    Args:
        path: where to write a PNG, or None.
        images: (n, height, width, 1 or 3), clipped to [0, 1].
    """
    images = np.asarray(images)
    n, height, width, _ = images.shape
    side = math.ceil(math.sqrt(n))
    scale = max(1, _PIXELS // max(height, width))
    shown = _colours(images).repeat(scale, 1).repeat(scale, 2)
    shown = np.pad(shown, ((0, -n % side), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    rows = shown.reshape(-1, side, *shown.shape[1:]).swapaxes(1, 2)
    sheet = rows.reshape(len(rows) * rows.shape[1], -1, 3)
    sheet = np.pad(sheet, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)
    return _write(Image.fromarray(sheet), path)


def png(image: np.ndarray) -> bytes:
    """A PNG of an image (height, width, 1 or 3), clipped to [0, 1], pixel by pixel."""
    return _contents(Image.fromarray(_colours(image)))


def scatter_rows(path: Path | None, rows: Mapping[str, Numbers], title: str) -> Image.Image:
    """Point clouds in the plane, side by side; the axes fit the first one.

    Args:
        path: where to write a PNG, or None.
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
    return _save(figure, path)


def image_paths(path: Path, frames: Sequence[Mapping[str, np.ndarray]], titles: Sequence[str]) -> None:
    """Rows of images on the way from noise to samples, a frame for each step.

    Args:
        path: where to write a GIF.
        frames: rows as of `image_rows`, step by step; the names may have several lines.
        titles: the titles of the frames.
    """
    _write_frames(path, [_sheet(rows, title) for rows, title in zip(frames, titles, strict=True)])


def _sheet(rows: Mapping[str, np.ndarray], title: str) -> Image.Image:
    """Rows of images, their names to the left. Pixels become squares of whole pixels, which take little of a GIF."""
    count, *shape, _ = next(iter(rows.values())).shape
    scale = _PANEL / max(shape)
    height, width = (round(length * (int(scale) if scale > 1 else scale)) for length in shape)
    sheet = Image.new("RGB", (_LABEL + count * (width + _GAP), _LINE + len(rows) * (height + _GAP)), "white")
    text, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    text.text((_GAP, _GAP), title, "black", font)
    for i, (name, images) in enumerate(rows.items()):
        top = _LINE + i * (height + _GAP)
        text.multiline_text((_GAP, top + height / 2), name, "black", font, anchor="lm")
        for j, image in enumerate(_colours(np.asarray(images))):
            panel = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
            sheet.paste(panel, (_LABEL + j * (width + _GAP), top))
    return sheet


def point_paths(
    path: Path, paths: Mapping[str, np.ndarray], clouds: Mapping[str, np.ndarray], titles: Sequence[str]
) -> None:
    """Paths of points in the plane, side by side, a frame for each step; the axes fit the first ones.

    Args:
        path: where to write a GIF.
        paths: name -> (n_points, n, 2 or more) states; the first two coordinates are drawn, up to the frame's step.
        clouds: name -> (n_points, m, 2 or more) states that show the density at each step.
        titles: the titles of the frames.
    """
    frames, most = [], 1.2 * float(np.abs(next(iter(paths.values()))[..., :2]).max())
    for step, title in enumerate(titles):
        figure = Figure(figsize=(3.2 * len(paths), 3.7), layout="constrained")
        for axes, (name, states) in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths.items(), strict=True):
            axes.scatter(*clouds[name][step, :, :2].T, s=6, color="#b0b0b0", linewidth=0)
            axes.plot(*states[: step + 1, :, :2].transpose(2, 0, 1), color=_COLORS[0], linewidth=0.7, alpha=0.7)
            axes.scatter(*states[step, :, :2].T, s=10, color=_LEARNED[0], zorder=5)
            axes.set(title=name, aspect="equal", xlim=(-most, most), ylim=(-most, most))
        figure.suptitle(title, fontsize=10)
        frames.append(_drawn(figure, _FRAME_DPI))
    _write_frames(path, frames)


def _color_of_grid(name: str) -> str:
    """The colour of a grid, the same in all pictures, for a name that begins with the grid's name."""
    grids, grid = list(GRIDS), name.split()[0]
    return _COLORS[grids.index(grid) if grid in grids else len(grids)]


def _colours(images: np.ndarray) -> np.ndarray:
    images = np.clip(images, 0, 1)
    shown = colormaps["magma"](images[..., 0])[..., :3] if images.shape[-1] == 1 else images
    return (255 * shown + 0.5).astype(np.uint8)


def _show(axes: Axes, image: np.ndarray) -> None:
    gray, image = image.shape[-1] == 1, np.clip(image, 0, 1)
    axes.imshow(image[..., 0] if gray else image, cmap="magma" if gray else None, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _drawn(figure: Figure, dpi: int) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer).convert("RGB")


def _save(figure: Figure, path: Path | None) -> Image.Image:
    return _write(_drawn(figure, 150), path)


def _write(picture: Image.Image, path: Path | None) -> Image.Image:
    if path is not None:
        write_atomically(Path(path), _contents(picture))
    return picture


def _contents(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def _write_frames(path: Path, frames: Sequence[Image.Image]) -> None:
    """A GIF that starts again after its last frame, which is shown longest."""
    buffer = io.BytesIO()
    first, *others = (frame.quantize(_FRAME_COLORS) for frame in frames)
    durations = [_FRAME_MS] * len(others) + [4 * _FRAME_MS]
    first.save(buffer, format="gif", save_all=True, append_images=others, duration=durations, loop=0)
    write_atomically(Path(path), buffer.getvalue())
