"""The benchmark's rows as tidy lines, and as one HTML page that needs nothing beside itself."""

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from experiments.measurements import Row, summary
from ld3_jax.disk import write_atomically

_TEMPLATE = Path(__file__).with_suffix(".html")
_TITLE = "Learned solvers: what was measured"
_NFE = 5  # of the plots that compare methods at one number of calls
_CELL = re.compile(r"(?P<network>\w+) (?:(?P<solver>[a-z]\w*) )?(?P<nfe>\d+)(?: seed (?P<seed>\d+))?(?: \(quick\))?")
_PARTS = ("network", "solver", "nfe", "seed")
_LEFT_OUT = {  # what a table says of all its rows, and their names therefore do not
    "curve": {"solver": "dpmpp", "seed": "0"},
    "baselines": {"solver": "dpmpp", "seed": "0"},
    "learners": {"network": "hsc32", "solver": "dpmpp", "nfe": "5", "seed": "0"},
}
_DRAWN = ("results", "curve", "baselines")
_SOLVERS = {"dpmpp": "DPM-Solver++ 3M", "unipc": "UniPC-3", "ipndm": "iPNDM-4"}


class Line(NamedTuple):
    """One discretisation, judged: a line of the CSV. Of rows without network, solver, calls or seed these are ""."""

    table: str
    network: str
    solver: str
    nfe: str
    seed: str
    method: str
    mean: float
    median: float
    another_basin: float


class Method(NamedTuple):
    """How a method is drawn and what it is."""

    colour: str  # at least 3.4 to 1 on white and on the dark background
    marker: str
    sign: str  # the marker as a character
    what: str


METHODS = {
    "hand-made": Method("#8a8a8a", "o", "●", "the hand-made grid with the least mean"),
    "hand-made, 2n calls": Method("#a97f3d", "s", "■", "the same with twice the calls"),
    "dmn": Method("#b5651d", "v", "▼", "DMN's grid, arXiv:2402.17376"),
    "gits": Method("#1f98a6", "P", "✚", "GITS' grid, arXiv:2405.11326"),
    "oss": Method("#9068cf", "X", "✖", "Optimal Steps' grid, arXiv:2503.21774"),
    "curve": Method("#2f9960", "^", "▲", "one curve, learned for all numbers of calls"),
    "times": Method("#3b82c4", "D", "◆", "times and network times learned"),
    "everything": Method("#d9415a", "*", "★", "times, network times and coefficients learned"),
}
_STATISTICS = ("mean", "median")
_COLUMNS = ("network", "solver", "calls", "method", *_STATISTICS, "another basin, %", "seed", "table")
Values = dict[tuple[str, str], dict[str, dict[int, dict[str, list[float]]]]]  # network, solver; method; nfe; seed

_INK = "#123456"  # stands for the page's colour of text
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_STYLE = dict.fromkeys(_INKED, _INK) | {
    "font.size": 8,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ld3",  # the same page for the same rows
}


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write the page, and its lines as CSV beside it.

    Args:
        record: as `measurements.read` gives it, with some rows.
        path: of the page.
    """
    measured = lines(record["rows"])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([Line._fields, *measured])
    write_atomically(path.with_suffix(".csv"), buffer.getvalue().encode())
    write_atomically(path, page(record, measured, path.with_suffix(".csv").name).encode())


def lines(rows: Mapping[str, Row]) -> list[Line]:
    """The errors of all rows, one line for each method."""
    found = []
    for key, row in rows.items():
        table, _, name = key.partition(": ")
        match = _CELL.fullmatch(name)
        named = {part: value for part, value in match.groupdict().items() if value} if match else {}
        cell = dict.fromkeys(_PARTS, "") | _LEFT_OUT.get(table, {}) | named
        for column, value in row.items():
            if isinstance(value, list):
                method = name if column == "error" else column
                found.append(Line(table, *(cell[part] for part in _PARTS), method, *value))
    return found


def page(record: Mapping[str, Any], measured: Sequence[Line], csv_name: str) -> str:
    """The page as HTML."""
    rows = record["rows"]
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    tables = list(dict.fromkeys(key.partition(": ")[0] for key in rows))
    values = _values(measured)
    with matplotlib.rc_context(_STYLE):
        curves, dots = "".join(_curves(values)), "".join(_dots(values))
    drawn = {method for cell in values.values() for method in cell}
    return Template(_TEMPLATE.read_text()).substitute(
        title=_TITLE,
        measured_on=html.escape(f"{record['device']} with Python {record['python']}, {packages}"),
        summary="".join(f"<li>{html.escape(line)}</li>" for line in summary(rows)),
        legend="".join(
            f'<li><b style="color:{method.colour}">{method.sign}</b> <b>{name}</b> {method.what}</li>'
            for name, method in METHODS.items()
            if name in drawn
        ),
        curves=curves and f"<h3>Squared error against the number of calls</h3><div class=panels>{curves}</div>",
        dots=dots and f"<h3>Squared error with {_NFE} calls</h3><div class=panels>{dots}</div>",
        errors=_table(_COLUMNS, [_shown(line) for line in measured]),
        others="".join(_other_figures(rows, tables)),
        csv=html.escape(csv_name),
        tables=html.escape(",".join(tables)),
    )


def _values(measured: Iterable[Line]) -> Values:
    """Mean and median of what is drawn; a cell that several tables have is one."""
    values: Values = {}
    for line in measured:
        if line.table in _DRAWN and line.method in METHODS and line.nfe:
            of_method = values.setdefault((line.network, line.solver), {}).setdefault(line.method, {})
            of_method.setdefault(int(line.nfe), {})[line.seed] = [line.mean, line.median]
    return values


def _curves(values: Values) -> Iterable[str]:
    """A panel for each network and solver with at least two numbers of calls: the means over the seeds."""
    for (network, solver), methods in values.items():
        nfes = sorted({nfe for by_nfe in methods.values() for nfe in by_nfe})
        if len(nfes) < 2:
            continue
        figure, axes = _panel(2.7)
        for name, by_nfe in methods.items():
            if name == "hand-made, 2n calls":  # which are other numbers of calls
                continue
            points = np.array([[nfe, *np.mean([*seeds.values()], 0)] for nfe, seeds in sorted(by_nfe.items())])
            for statistic, column in zip(_STATISTICS, points.T[1:], strict=True):
                _draw(axes, name, statistic, points[:, 0], column, linewidth=1.4)
        axes.set(xscale="log", yscale="log", xlabel="network calls")
        _plain_log(axes.yaxis, (1, 3))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
        yield _figure(figure, f"{network}, {_SOLVERS.get(solver, solver)}", f"curves-{network}-{solver}")


def _dots(values: Values) -> Iterable[str]:
    """A panel for each network: a row for each solver, a dot for each method and seed."""
    at = {
        cell: {name: by_nfe[_NFE] for name, by_nfe in methods.items() if _NFE in by_nfe}
        for cell, methods in values.items()
        if any(_NFE in by_nfe for by_nfe in methods.values())
    }
    every = [error for methods in at.values() for seeds in methods.values() for error in np.ravel([*seeds.values()])]
    for network in dict.fromkeys(network for network, _ in at):
        solvers = [solver for other, solver in at if other == network]
        figure, axes = _panel(0.7 + 0.55 * len(solvers))
        for row, solver in enumerate(solvers):
            methods = at[network, solver]
            for name, place in zip(methods, np.linspace(-0.25, 0.25, len(methods)), strict=True):
                for statistic, column in zip(_STATISTICS, np.transpose([*methods[name].values()]), strict=True):
                    _draw(axes, name, statistic, column, np.full(len(column), row + place), linewidth=0)
        axes.set(xscale="log", xlim=(min(every) / 1.5, max(every) * 1.5), xlabel="squared error")
        axes.set(ylim=(len(solvers) - 0.5, -0.5))
        axes.set_yticks(range(len(solvers)), [_SOLVERS.get(solver, solver) for solver in solvers])
        _plain_log(axes.xaxis, (1,))
        yield _figure(figure, network, f"dots-{network}")


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, height), layout="constrained")
    return figure, figure.subplots()


def _draw(axes: Axes, name: str, statistic: str, x: np.ndarray, y: np.ndarray, linewidth: float) -> None:
    """Points of a method; the page shows one of the statistics by the end of its id."""
    method = METHODS[name]
    size = 7 if method.marker == "*" else 4.5
    (drawn,) = axes.plot(x, y, method.marker, color=method.colour, ls="-", linewidth=linewidth, markersize=size)
    drawn.set_gid(f"{len(axes.lines)}-{statistic}")


def _plain_log(axis: Axis, times: Sequence[int]) -> None:
    """Ticks at these multiples of powers of ten, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=times))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _figure(figure: Figure, caption: str, name: str) -> str:
    """A picture as inline SVG whose text has the page's font and colour, and whose ids are its own."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace(_INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    name = html.escape(re.sub(r"\W", "-", name))
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"


def _other_figures(rows: Mapping[str, Row], tables: Sequence[str]) -> Iterable[str]:
    """What the rows hold beside errors: starts, seconds, speed, a table for each."""
    for table in tables:
        own = {key.partition(": ")[2]: row for key, row in rows.items() if key.startswith(f"{table}: ")}
        columns = dict.fromkeys(name for row in own.values() for name, value in row.items() if np.isscalar(value))
        if columns:
            cells = [(name, *(_written(row.get(column, "")) for column in columns)) for name, row in own.items()]
            yield f"<h3>{html.escape(table)}</h3>{_table(('row', *columns), cells)}"


def _shown(line: Line) -> tuple[str, ...]:
    """What _COLUMNS say: what matters most stands where a phone shows it."""
    errors = (f"{line.mean:.5f}", f"{line.median:.5f}", f"{100 * line.another_basin:.1f}")
    return (line.network, line.solver, line.nfe, line.method, *errors, line.seed, line.table)


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a box that scrolls; none without rows."""
    if not rows:
        return ""
    head = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=box><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
