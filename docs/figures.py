"""The pictures of the site, from the committed figures of results/galaxies.csv.

python -m docs.figures
"""

import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ld3_jax.grids import GRIDS

ASSETS = Path("docs/assets")
NETWORKS = ("hsc32", "ztf32", "lsst60", "quasar72")
BEST, TIMES, ALL = "best standard grid", "times", "times + coefficients"
COLOURS = {BEST: "#8a8a8a", TIMES: "#3b82c4", ALL: "#d9415a"}

Cells = dict[tuple[str, str, int], dict[str, dict[str, str]]]


def cells() -> Cells:
    """(network, solver, calls) -> method -> its line, with the best standard grid as one more method."""
    found: Cells = defaultdict(dict)
    with Path("results/galaxies.csv").open() as file:
        for line in csv.DictReader(file):
            name = {"everything": ALL}.get(line["method"], line["method"])
            found[line["network"], line["solver"], int(line["nfe"])][name] = line
    for methods in found.values():
        methods[BEST] = min((methods[grid] for grid in GRIDS), key=lambda line: float(line["mean"]))
    return found


def error_against_calls(found: Cells, solver: str = "unipc") -> Figure:
    """Means with their 95 % intervals above, medians below, for each network."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    calls = sorted({nfe for _, _, nfe in found})
    for row, statistic in zip(figure.subplots(2, len(NETWORKS), sharex=True), ("mean", "median"), strict=True):
        for axes, network in zip(row, NETWORKS, strict=True):
            for method, colour in COLOURS.items():
                lines = [found[network, solver, nfe][method] for nfe in calls]
                values = [float(line[statistic]) for line in lines]
                axes.plot(calls, values, "o-", color=colour, markersize=4, label=method)
                if statistic == "mean":
                    low, high = ([float(line[end]) for line in lines] for end in ("low", "high"))
                    axes.fill_between(calls, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(yscale="log", xticks=calls)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.25)
        row[0].set_ylabel(f"{statistic} squared error")
    for axes, network in zip(figure.axes, NETWORKS, strict=False):
        axes.set_title(network)
    figure.supxlabel("network calls", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def learned_grid(found: Cells, network: str = "hsc32", solver: str = "dpmpp", nfe: int = 5) -> Figure:
    """Where the times of each grid lie between noise and data, with the error that they lead to."""
    methods = found[network, solver, nfe]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    names = [*sorted(GRIDS, key=lambda name: -float(methods[name]["mean"])), TIMES]
    for height, name in enumerate(names):
        _draw(axes, height, methods[name], "#d9415a" if name == TIMES else "#606060")
    axes.set(yticks=range(len(names)), yticklabels=["learned" if name == TIMES else name for name in names])
    axes.set(xlabel="half-log-SNR:  noise \N{RIGHTWARDS ARROW} data", ylim=(-0.6, len(names) - 0.2))
    axes.set_title(f"{nfe} network calls on {network}: times of each grid, and the mean squared error", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def _draw(axes: Axes, height: int, line: dict[str, str], colour: str) -> None:
    lam = [float(value) for value in line["lam"].split()]
    axes.plot(lam, [height] * len(lam), "-", color=colour, alpha=0.3)
    axes.plot(lam[:-1], [height] * (len(lam) - 1), "o", color=colour)  # the network is called at these
    axes.plot(lam[-1:], [height], "o", color=colour, markerfacecolor="white")
    error = f"{float(line['mean']):.4f}"
    axes.annotate(error, (lam[-1], height), xytext=(10, -3), textcoords="offset points", color=colour)


def main(folder: Path = ASSETS) -> None:
    found = cells()
    for name, draw in {"error_against_calls": error_against_calls, "learned_grid": learned_grid}.items():
        draw(found).savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
