"""What the cells of a sweep say: in sentences, as tidy lines, as a picture, and as one HTML page that stands alone."""

import base64
import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib
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
    colour: str  # at least 3.4 to 1 on white and on the dark background
    marker: str
    sign: str  # the marker as a character
    what: str


BEST = "best hand-made"
METHODS = {
    BEST: Method("best hand-made", "#8a8a8a", "o", "●", "the hand-made grid with the least mean"),
    "dmn": Method("DMN", "#b5651d", "v", "▼", "DMN's grid, arXiv:2402.17376"),
    "gits": Method("GITS", "#1f98a6", "P", "✚", "GITS' grid, arXiv:2405.11326"),
    "oss": Method("Optimal Steps", "#9068cf", "X", "✖", "Optimal Steps' grid, arXiv:2503.21774"),
    "times": Method("times learned", "#3b82c4", "D", "◆", "times and network times learned"),
    "everything": Method("everything learned", "#d9415a", "*", "★", "times, network times and coefficients learned"),
}
_INK = "#123456"  # stands for the page's colour of text
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_STYLE = dict.fromkeys(_INKED, _INK) | {
    "font.size": 8,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ld3",  # the same page for the same cells
}


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
    """Mean and median of a method as shares of those of the best hand-made grid: (number of cells, 2)."""
    pairs = [(one.methods[name], one.best_grid) for one in cells]
    return np.array([[learned.mean / grid.mean, learned.median / grid.median] for learned, grid in pairs])


def geometric_mean(ratios: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    return np.exp(np.log(ratios).mean(0))


def summary(cells: Sequence[Measured]) -> list[str]:
    """What the cells say together, a line for each learned method."""
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
            f"{name}, {len(cells)} cells: the geometric mean of learned / best hand-made is {mean:.3f} for means and "
            f"{median:.3f} for medians; the mean is above it in {above[0]} cells, the median in {above[1]}; in "
            f"{sum(twice)} of {len(twice)} the mean is no higher than that of the best hand-made grid with twice the "
            f"calls; the Frechet distance is below that of every hand-made grid in {nearer} of {len(images)}"
        )
    return lines


def of_sweep(measured: Sequence[Measured], workdir: Path, command: str) -> str:
    """The page.

    Args:
        measured: the cells, at least one, in order.
        workdir: where their pictures are.
        command: that measured them.
    """
    panels = _panels(measured)
    drawn = {name for one in measured for name in _drawn(one)}
    devices = sorted({one.device for one in measured})
    held_out = sorted({f"{one.cell.network} {one.held_out}" for one in measured})
    with matplotlib.rc_context(_STYLE):
        curves, grids = (_all(panels, draw) for draw in (_curves, _grids))
    return Template(_TEMPLATE.read_text()).substitute(
        title="Learned solvers beside hand-made grids and those of other methods",
        measured_on=html.escape("; ".join(devices)),
        held_out=html.escape(", ".join(held_out)),
        summary="".join(f"<li>{html.escape(line)}</li>" for line in summary(measured)),
        legend="".join(
            f'<li><b style="color:{method.colour}">{method.sign}</b> <b>{method.label}</b> {method.what}</li>'
            for name, method in METHODS.items()
            if name in drawn
        ),
        curves=curves,
        grids=grids,
        command=html.escape(command),
        samples=_all(panels, lambda panel, name: _samples(panel, workdir)),
        figures=_table(_rows(measured)),
    )


def _all(panels: dict[tuple[str, str], list[Measured]], draw: Callable[[list[Measured], str], str]) -> str:
    """A figure for each panel that has something to draw."""
    figures = []
    for (network, solver), panel in panels.items():
        if drawn := draw(panel, f"{draw.__name__.strip('_')}-{network}-{solver}"):
            figures.append(f"<figure><figcaption>{html.escape(_title(panel))}</figcaption>{drawn}</figure>")
    return "".join(figures)


def _title(panel: list[Measured]) -> str:
    one = panel[0]
    order = one.config.get("solver", {}).get("order")
    return f"{one.cell.network}, {Solver(one.cell.solver, order=order)}"


def _drawn(measured: Measured) -> dict[str, Figures]:
    """The methods that are drawn: of the hand-made grids the best."""
    methods = {BEST: measured.best_grid} | measured.methods
    return {name: methods[name] for name in METHODS if name in methods}


def picture(measured: Sequence[Measured]) -> bytes:
    """A PNG of the mean errors: a row for each network, a column for each solver, of the first seed."""
    panels = _panels(measured)
    networks, solvers = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure = Figure(figsize=(3.4 * len(solvers), 2.5 * len(networks) + 0.5), layout="constrained")
    axes_of = figure.subplots(len(networks), len(solvers), squeeze=False, sharex=True, sharey="row")
    for axes in axes_of.flat:
        axes.set_visible(False)  # a panel that has not been measured
    for (network, solver), panel in panels.items():
        axes = axes_of[networks.index(network), solvers.index(solver)]
        axes.set_visible(True)
        _draw_errors(axes, panel, ("mean",))
        axes.set_title(_title(panel), fontsize=9)
        axes.set_xlabel("network calls" if network == networks[-1] else "")
        axes.grid(alpha=0.2)
    nfes = sorted({one.cell.nfe for panel in panels.values() for one in panel})
    axes_of[0, 0].set_xticks(nfes, [str(nfe) for nfe in nfes])  # all panels share them
    lines = [Line2D([], [], label=method.label, linewidth=1.4, **_dots(name)) for name, method in METHODS.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)
    figure.supylabel("mean squared error, 95 % interval", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _panels(measured: Sequence[Measured]) -> dict[tuple[str, str], list[Measured]]:
    """The cells of each network and solver, of the first seed."""
    panels: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        if one.cell.seed == measured[0].cell.seed:
            panels.setdefault((one.cell.network, one.cell.solver), []).append(one)
    return panels


def _curves(panel: list[Measured], name: str) -> str:
    """Errors against the number of calls, and Frechet distances, which the page shows in their place if asked to."""
    drawn = {"errors": ("mean", "median"), "distances": ("frechet",)}
    if all(judged.frechet is None for one in panel for judged in one.methods.values()):
        del drawn["distances"]
    divisions = []
    for kind, statistics in drawn.items():
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        _draw_errors(figure.subplots(), panel, statistics)
        divisions.append(f"<div class={kind}>{_svg(figure, f'{name}-{kind}')}</div>")
    return "".join(divisions)


def _draw_errors(axes: Axes, panel: list[Measured], statistics: Sequence[str]) -> None:
    """A line for each method and statistic, whose id ends with it; around the mean its interval."""
    nfes, drawn = np.array([one.cell.nfe for one in panel]), [_drawn(one) for one in panel]
    for method, (_, colour, *_) in METHODS.items():
        at = np.array([i for i, methods in enumerate(drawn) if method in methods], int)
        points = [drawn[i][method] for i in at]
        for statistic in statistics:
            values = np.array([getattr(point, statistic) for point in points], float)  # None: NaN
            axes.plot(nfes[at], values, gid=f"{method}-{statistic}", linewidth=1.4, **_dots(method))
        if "mean" in statistics:
            ends = ([getattr(point, end) for point in points] for end in ("low", "high"))
            axes.fill_between(nfes[at], *ends, color=colour, alpha=0.15, linewidth=0, gid=f"{method}-band-mean")
    axes.set(xscale="log", yscale="log", xlabel="network calls")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())
    axes.set_xticks(nfes, [str(nfe) for nfe in nfes])


def _grids(panel: list[Measured], name: str) -> str:
    """Where the steps lie, with the second smallest number of calls."""
    one = panel[min(1, len(panel) - 1)]
    drawn = _drawn(one)
    figure = Figure(figsize=(3.6, 0.5 + 0.24 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for row, (method, judged) in enumerate(drawn.items()):
        axes.plot(judged.lam, np.full(len(judged.lam), row), linewidth=0, **_dots(method))
    axes.set(xlabel=f"half-log-SNR of the times, {one.cell.nfe} calls", ylim=(len(drawn) - 0.5, -0.5))
    axes.set_yticks(range(len(drawn)), list(drawn))
    return _svg(figure, name)


def _samples(panel: list[Measured], workdir: Path) -> str:
    """The first noise's samples: a row for each method, a column for each number of calls."""
    columns = [one for one in panel if one.cell.path(workdir).with_suffix(".png").exists()]
    if not columns:
        return ""
    rows = ["teacher", *columns[0].methods]
    labels = "".join(f"<span>{html.escape(row)}</span>" for row in rows)
    images = "".join(
        f"<div><b>{one.cell.nfe}</b><img alt='samples with {one.cell.nfe} calls' src='data:image/png;base64,"
        f"{base64.b64encode(one.cell.path(workdir).with_suffix('.png').read_bytes()).decode()}'></div>"
        for one in columns
    )
    return f"<div class=samples><div><b>calls</b><div>{labels}</div></div>{images}</div>"


def _dots(method: str) -> dict[str, Any]:
    _, colour, marker, *_ = METHODS[method]
    return {"marker": marker, "color": colour, "markersize": 7 if marker == "*" else 4.5}


def _svg(figure: Figure, name: str) -> str:
    """Inline SVG whose text has the page's font and colour, and whose ids are its own."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace(_INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    own = re.sub(r"\W", "-", name)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", svg)


def _table(rows: Iterable[Sequence[Any]]) -> str:
    """A table in a box that scrolls, without the times."""
    shown = [i for i, name in enumerate(_COLUMNS) if name != "lam"]
    head = "".join(f"<th><button>{html.escape(_COLUMNS[i].replace('_', ' '))}</button></th>" for i in shown)
    lines = (
        [f"{row[i]:.5g}" if isinstance(row[i], float) else "" if row[i] is None else str(row[i]) for i in shown]
        for row in rows
    )
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class=box><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
