"""The results of a sweep: in sentences, as CSV, as a picture, and as one self-contained HTML page."""

import base64
import csv
import html
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from experiments.cells import LEARNED, Cell, Figures, Measured
from ld3_jax.grids import GRIDS
from ld3_jax.solvers import Solver

_COLUMNS = (*Cell._fields, "method", "held_out", *Figures._fields)
_TEMPLATE = Path(__file__).with_suffix(".html")


class Method(NamedTuple):
    """How a method is drawn and what it is."""

    label: str
    colour: str  # at least 3.4 to 1 on white
    marker: str
    sign: str  # the marker as a character
    what: str


BEST = "best standard grid"
METHODS = {
    BEST: Method("best standard grid", "#8a8a8a", "o", "●", "the standard grid with the lowest mean"),
    "dmn": Method("DMN", "#b5651d", "v", "▼", "DMN's grid, arXiv:2402.17376"),
    "gits": Method("GITS", "#1f98a6", "P", "✚", "GITS' grid, arXiv:2405.11326"),
    "oss": Method("Optimal Steps", "#9068cf", "X", "✖", "Optimal Steps' grid, arXiv:2503.21774"),
    "times": Method("times", "#3b82c4", "D", "◆", "times and network times learned"),
    "everything": Method("times + coefficients", "#d9415a", "*", "★", "times, network times and coefficients learned"),
}
# What pictures show against the number of calls.
STATISTICS = {"mean": "mean squared error, 95 % interval", "median": "median", "frechet": "Frechet distance"}


def label(name: str) -> str:
    """A method as people see it; a grid has its own name."""
    return METHODS[name].label if name in METHODS else name


def as_csv(cells: Iterable[Measured]) -> bytes:
    """A line for each method of each cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_COLUMNS, *_rows(cells)])
    return buffer.getvalue().encode()


def _rows(cells: Iterable[Measured]) -> Iterator[list[Any]]:
    """The values of _COLUMNS, for each method of each cell."""
    for measured in cells:
        for name, figures in measured.methods.items():
            lam = " ".join(f"{value:.6g}" for value in figures.lam)
            yield [*measured.cell, name, measured.held_out, *figures._replace(lam=lam)]


def shares(cells: Iterable[Measured], name: str) -> np.ndarray:
    """Mean and median of a method divided by the best standard grid's: (number of cells, 2)."""
    pairs = [(one.methods[name], one.best_grid) for one in cells]
    return np.array([[learned.mean / grid.mean, learned.median / grid.median] for learned, grid in pairs])


def geometric_mean(ratios: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    return np.exp(np.log(ratios).mean(0))


def summary(cells: Sequence[Measured]) -> list[str]:
    """A summary of all cells, one line for each learned method."""
    by_cell, lines = {measured.cell: measured for measured in cells}, []
    for name in LEARNED if cells else ():
        ratios = shares(cells, name)
        mean, median = geometric_mean(ratios)
        above = (ratios > 1).sum(0)
        twice = [
            one.methods[name].mean <= by_cell[more].best_grid.mean
            for one in cells
            if (more := one.cell._replace(nfe=2 * one.cell.nfe)) in by_cell
        ]
        images = [one.methods for one in cells if one.methods[name].frechet is not None]
        nearer = sum(methods[name].frechet < min(methods[grid].frechet for grid in GRIDS) for methods in images)
        lines.append(
            f"{label(name)}, {len(cells)} cells: the geometric mean of learned / best standard grid is {mean:.3f} for "
            f"means and {median:.3f} for medians; the mean is above it in {above[0]} cells, the median in {above[1]}; "
            f"in {sum(twice)} of {len(twice)} the mean is no higher than that of the best standard grid with twice "
            f"the calls; the Frechet distance is below that of every standard grid in {nearer} of {len(images)}"
        )
    return lines


def of_sweep(measured: Sequence[Measured], workdir: Path, command: str) -> str:
    """The page.

    Args:
        measured: the cells, at least one, in order.
        workdir: where their pictures are.
        command: the command that measured them.
    """
    drawn = {name for one in measured for name in _drawn(one)}
    devices = sorted({one.device for one in measured})
    held_out = sorted({f"{one.cell.network} {one.held_out}" for one in measured})
    kinds = ["mean", "median", *(["frechet"] if any(one.best_grid.frechet is not None for one in measured) else [])]
    curves = [f"<div class={kind}>{_image(picture(measured, kind), STATISTICS[kind])}</div>" for kind in kinds]
    return Template(_TEMPLATE.read_text()).substitute(
        title="Learned solvers, standard grids and grids of other methods",
        measured_on=html.escape("; ".join(devices)),
        held_out=html.escape(", ".join(held_out)),
        summary="".join(f"<li>{html.escape(line)}</li>" for line in summary(measured)),
        legend="".join(
            f'<li><b style="color:{method.colour}">{method.sign}</b> <b>{method.label}</b> {method.what}</li>'
            for name, method in METHODS.items()
            if name in drawn
        ),
        curves="".join(curves),
        grids=_image(grids(measured), "half-log-SNR of the times"),
        command=html.escape(command),
        samples="".join(_samples(panel, workdir) for panel in _panels(measured).values()),
        figures=_table(_rows(measured)),
    )


def picture(measured: Sequence[Measured], statistic: str = "mean") -> bytes:
    """A PNG of one of STATISTICS: a row for each network, a column for each solver, for the first seed."""
    figure = _sheet(measured, lambda axes, panel: _draw_errors(axes, panel, statistic), sharex=True, sharey="row")
    nfes = sorted({one.cell.nfe for one in measured})
    figure.axes[0].set_xticks(nfes, [str(nfe) for nfe in nfes])  # all panels share them
    lines = [Line2D([], [], label=method.label, linewidth=1.4, **_dots(name)) for name, method in METHODS.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)
    figure.supylabel(STATISTICS[statistic], fontsize=9)
    return _png(figure)


def grids(measured: Sequence[Measured]) -> bytes:
    """A PNG of where the steps lie, in the same arrangement."""
    return _png(_sheet(measured, _draw_grids))


def _sheet(measured: Sequence[Measured], draw: Callable[[Axes, list[Measured]], None], **shared: Any) -> Figure:
    panels = _panels(measured)
    networks, solvers = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure = Figure(figsize=(3.4 * len(solvers), 2.5 * len(networks) + 0.5), layout="constrained")
    axes_of = figure.subplots(len(networks), len(solvers), squeeze=False, **shared)
    for axes in axes_of.flat:
        axes.set_visible(False)  # a panel that has not been measured
    for (network, solver), panel in panels.items():
        axes = axes_of[networks.index(network), solvers.index(solver)]
        axes.set_visible(True)
        draw(axes, panel)
        axes.set_title(_title(panel), fontsize=9)
        if shared:
            axes.label_outer()
        axes.grid(alpha=0.2)
    return figure


def _panels(measured: Sequence[Measured]) -> dict[tuple[str, str], list[Measured]]:
    """The cells of each network and solver, for the first seed."""
    panels: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        if one.cell.seed == measured[0].cell.seed:
            panels.setdefault((one.cell.network, one.cell.solver), []).append(one)
    return panels


def _title(panel: list[Measured]) -> str:
    one = panel[0]
    order = one.config.get("solver", {}).get("order")
    return f"{one.cell.network}, {Solver(one.cell.solver, order=order)}"


def _drawn(measured: Measured) -> dict[str, Figures]:
    """The methods that are drawn; only the best one of the standard grids."""
    methods = {BEST: measured.best_grid} | measured.methods
    return {name: methods[name] for name in METHODS if name in methods}


def _draw_errors(axes: Axes, panel: list[Measured], statistic: str) -> None:
    """A line for each method, with an interval around the mean."""
    for method in METHODS:
        points = {one.cell.nfe: drawn[method] for one in panel if method in (drawn := _drawn(one))}
        values = np.array([getattr(point, statistic) for point in points.values()], float)  # None: NaN
        axes.plot([*points], values, linewidth=1.4, **_dots(method))
        if statistic == "mean":
            ends = ([getattr(point, end) for point in points.values()] for end in ("low", "high"))
            axes.fill_between([*points], *ends, color=METHODS[method].colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="network calls")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())


def _draw_grids(axes: Axes, panel: list[Measured]) -> None:
    """The times with the second smallest number of calls."""
    one = panel[min(1, len(panel) - 1)]
    drawn = _drawn(one)
    for row, (method, figures) in enumerate(drawn.items()):
        axes.plot(figures.lam, np.full(len(figures.lam), row), linewidth=0, **_dots(method))
    axes.set(xlabel=f"half-log-SNR, {one.cell.nfe} calls", ylim=(len(drawn) - 0.5, -0.5))
    axes.set_yticks(range(len(drawn)), list(drawn))


def _dots(method: str) -> dict[str, Any]:
    _, colour, marker, *_ = METHODS[method]
    return {"marker": marker, "color": colour, "markersize": 7 if marker == "*" else 4.5}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _image(png: bytes, what: str) -> str:
    return f"<img alt='{what}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _samples(panel: list[Measured], workdir: Path) -> str:
    """The first noise's samples: a row for each method, a column for each number of calls."""
    columns = [one for one in panel if one.cell.path(workdir).with_suffix(".png").exists()]
    if not columns:
        return ""
    labels = "".join(f"<span>{html.escape(row)}</span>" for row in ("teacher", *map(label, columns[0].methods)))
    pictures = [(one.cell.nfe, one.cell.path(workdir).with_suffix(".png").read_bytes()) for one in columns]
    images = "".join(f"<div><b>{nfe}</b>{_image(png, f'samples with {nfe} calls')}</div>" for nfe, png in pictures)
    caption = f"<figcaption>{html.escape(_title(panel))}</figcaption>"
    labels = f"<div><b>calls</b><div>{labels}</div></div>"
    return f"<figure>{caption}<div class=samples>{labels}{images}</div></figure>"


def _table(rows: Iterable[Sequence[Any]]) -> str:
    """A table in a scrolling box, without the times."""
    shown = [i for i, name in enumerate(_COLUMNS) if name != "lam"]
    head = "".join(f"<th><button>{html.escape(_COLUMNS[i].replace('_', ' '))}</button></th>" for i in shown)
    lines = (
        [f"{row[i]:.5g}" if isinstance(row[i], float) else "" if row[i] is None else label(str(row[i])) for i in shown]
        for row in rows
    )
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class=box><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
