"""The cells of a sweep: what was measured of each method, in a file for each cell, and all of it as tidy lines."""

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ld3_jax.disk import numbers, read_json, write_atomically
from ld3_jax.grids import GRIDS
from ld3_jax.solvers import Solver

LEARNED = ("times", "everything")


class Cell(NamedTuple):
    """One student: which network, which solver, how many calls, which noises."""

    network: str
    solver: str
    nfe: int
    seed: int

    def __str__(self) -> str:
        return f"{self.network} {self.solver} {self.nfe} seed {self.seed}"

    def path(self, workdir: Path) -> Path:
        """The file of what was measured."""
        return workdir / "cells" / f"{self.network}-{self.solver}-{self.nfe}-{self.seed}.json"


class Judged(NamedTuple):
    """A method's samples against the teacher's, on the same held-out noises.

    Attributes:
        mean: of the squared errors.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        median: of the squared errors.
        another_basin: share of samples that end in another basin than the teacher's.
        frechet: squared Frechet distance of pixels; None where samples are no images.
        lam: half-log-SNR of the times.
        start: what learning started from; "" of a grid.
        network_calls: of learning, for one sample each; 0 of a grid.
    """

    mean: float
    low: float
    high: float
    median: float
    another_basin: float
    frechet: float | None
    lam: list[float]
    start: str = ""
    network_calls: int = 0


class Measured(NamedTuple):
    """What a cell's file holds."""

    cell: Cell
    held_out: int
    device: str
    config: dict[str, Any]
    methods: dict[str, Judged]


def write(workdir: Path, measured: Measured, column: bytes | None) -> None:
    """Write a cell, and beside it a PNG of one noise's samples: the teacher's, and below it each method's."""
    path = measured.cell.path(workdir)
    if column is not None:
        write_atomically(path.with_suffix(".png"), column)
    methods = {name: judged._asdict() for name, judged in measured.methods.items()}
    record = measured._asdict() | {"cell": measured.cell._asdict(), "methods": methods}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read(path: Path) -> Measured:
    """Read a cell.

    Raises:
        ValueError: if the file is damaged or no cell.
    """
    record = read_json(path)
    try:
        methods = {name: Judged(**judged) for name, judged in record.pop("methods").items()}
        measured = Measured(cell=Cell(**record.pop("cell")), methods=methods, **record)
        sound = _is_sound(measured) and measured.cell.path(Path()).name == path.name
        Solver(measured.cell.solver, order=measured.config.get("solver", {}).get("order"))  # as the page names it
    except (TypeError, AttributeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: not a cell of a sweep; remove it, and it is measured again")
    return measured


def _is_sound(measured: Measured) -> bool:
    """Whether all values are of their kinds, and no hand-made grid and nothing that is learned is missing."""
    words = [*measured.cell[:2], measured.device, *(judged.start for judged in measured.methods.values())]
    counts = [*measured.cell[2:], measured.held_out, *(judged.network_calls for judged in measured.methods.values())]
    figures = [
        figure
        for judged in measured.methods.values()
        for figure in (*judged[:5], *([] if judged.frechet is None else [judged.frechet]), *judged.lam)
    ]
    return (
        all(isinstance(word, str) for word in words)
        and all(type(count) is int for count in counts)
        and numbers(figures).ndim == 1
        and len({judged.frechet is None for judged in measured.methods.values()}) == 1
        and isinstance(measured.config, dict)
        and {*GRIDS, *LEARNED} <= {*measured.methods}
    )


def read_all(workdir: Path) -> list[Measured]:
    """The cells of a workdir that are not damaged, in the order of networks, solvers and numbers of calls."""
    found = []
    for path in (workdir / "cells").glob("*.json"):
        with contextlib.suppress(ValueError, OSError):  # named where it would be measured
            found.append(read(path))
    return sorted(found, key=lambda measured: measured.cell)


def best_grid(methods: Mapping[str, Judged]) -> str:
    """The hand-made grid with the least mean."""
    return min(GRIDS, key=lambda name: methods[name].mean)


def as_csv(cells: Iterable[Measured]) -> bytes:
    """A line for each method of each cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*Cell._fields, "method", "held_out", *Judged._fields])
    for measured in cells:
        for name, judged in measured.methods.items():
            lam = " ".join(f"{value:.6g}" for value in judged.lam)
            writer.writerow([*measured.cell, name, measured.held_out, *judged._replace(lam=lam)])
    return buffer.getvalue().encode()


def shares(cells: Iterable[Measured], name: str) -> np.ndarray:
    """Mean and median of a method as shares of those of the best hand-made grid: (number of cells, 2)."""
    pairs = [(one.methods[name], one.methods[best_grid(one.methods)]) for one in cells]
    return np.array([[learned.mean / grid.mean, learned.median / grid.median] for learned, grid in pairs])


def geometric_mean(ratios: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    return np.exp(np.log(ratios).mean(0))


def summary(cells: Iterable[Measured]) -> list[str]:
    """What the cells say together, a line for each learned method."""
    cells = list(cells)
    by_cell = {measured.cell: measured.methods for measured in cells}
    lines = []
    for name in LEARNED if cells else ():
        ratios = shares(cells, name)
        mean, median = geometric_mean(ratios)
        above = (ratios > 1).sum(0)
        twice = [
            methods[name].mean <= by_cell[more][best_grid(by_cell[more])].mean
            for cell, methods in by_cell.items()
            if (more := cell._replace(nfe=2 * cell.nfe)) in by_cell
        ]
        images = [methods for methods in by_cell.values() if methods[name].frechet is not None]
        nearer = sum(methods[name].frechet < min(methods[grid].frechet for grid in GRIDS) for methods in images)
        lines.append(
            f"{name}, {len(cells)} cells: the geometric mean of learned / best hand-made is {mean:.3f} for means and "
            f"{median:.3f} for medians; the mean is above it in {above[0]} cells, the median in {above[1]}; in "
            f"{sum(twice)} of {len(twice)} the mean is no higher than that of the best hand-made grid with twice the "
            f"calls; the Frechet distance is below that of every hand-made grid in {nearer} of {len(images)}"
        )
    return lines
