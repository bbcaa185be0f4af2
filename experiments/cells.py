"""The cells of a sweep, and what was measured for each method, in one file per cell."""

import contextlib
import itertools
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import times
from experiments.configuration import GROUPS, differences
from experiments.run import Run
from ld3_jax import comparison, metrics, plots
from ld3_jax.baselines import BASELINES, Probe
from ld3_jax.batches import to_host
from ld3_jax.comparison import SQUARED_ERROR, Judged
from ld3_jax.disk import check_writable, numbers, read_json, write_atomically
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Ended
from ld3_jax.pretrained import MODELS, Pretrained
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO, NUMBER, SEED, TEXT, Kind, check, instance
from ld3_jax.solvers import SOLVERS, Solver

LEARNED = ("times", "everything")
_KEYS = ("networks", "solvers", "nfes", "seeds", "baselines", "probes", "run")
_LIKE = 100  # how many of the teacher's samples set the brightness of pictures
_OF_CELL = {"network": TEXT, "solver": TEXT, "nfe": COUNT, "seed": SEED}
_OF_FIGURES = dict.fromkeys(("mean", "low", "high", "median", "another_basin"), NUMBER) | {
    "frechet": NUMBER.or_none(),
    "lam": Kind("a list of numbers", lambda values: numbers(values).ndim == 1),
    "start": TEXT,
    "network_calls": COUNT_OR_ZERO,
}


class Cell(NamedTuple):
    """One student: its network, solver, number of calls and noises."""

    network: str
    solver: str
    nfe: int
    seed: int

    def __str__(self) -> str:
        return f"{self.network} {self.solver} {self.nfe} seed {self.seed}"

    def path(self, workdir: Path) -> Path:
        """The file with its figures."""
        return workdir / "cells" / f"{self.network}-{self.solver}-{self.nfe}-{self.seed}.json"


class Figures(NamedTuple):
    """A method's samples against the teacher's, on the same held-out noises.

    Attributes:
        mean: of the squared errors.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        median: of the squared errors.
        another_basin: share of samples that end in another basin than the teacher's.
        frechet: squared Frechet distance of pixels; None if samples are not images.
        lam: half-log-SNR of the times.
        start: what learning started from; "" for a grid.
        network_calls: network calls of learning, for one sample each; 0 for a grid.
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
    """The content of a cell's file."""

    cell: Cell
    held_out: int
    device: str
    config: dict[str, Any]
    methods: dict[str, Figures]

    @property
    def best_grid(self) -> Figures:
        """The standard grid with the lowest mean."""
        return min((self.methods[name] for name in GRIDS), key=lambda figures: figures.mean)


def check_config(config: config_dict.ConfigDict) -> None:
    """Refuse a configuration from which no cell could be made.

    Raises:
        ValueError: it names the key, what was given and what is allowed.
    """
    if missing := [key for key in _KEYS if key not in config]:
        raise ValueError(f"not the configuration of a sweep: it lacks {missing}; see configs/sweeps/galaxies.py")
    for key, allowed in {"networks": MODELS, "solvers": SOLVERS, "baselines": BASELINES}.items():
        if unknown := [name for name in config[key] if name not in allowed]:
            raise ValueError(f"{key} takes some of {sorted(allowed)}, got {unknown}")
    for key in ("networks", "solvers", "nfes", "seeds"):
        if not config[key]:
            raise ValueError(f"{key} must not be empty")
    if not 1 <= config.probes <= config.run.data.train:
        raise ValueError(f"probes must be from 1 to run.data.train {config.run.data.train}, got {config.probes}")
    learn = config.run.learn
    if set(learn.what) != set(GROUPS) or learn.by_part:
        raise ValueError(
            f"run.learn.what must be all of {list(GROUPS)}, and run.learn.by_part False: the sweep learns times, and "
            f"times + coefficients; got {list(learn.what)} and {learn.by_part}"
        )
    for cell in all_cells(config):
        Run.of(of_cell(config, cell))


def all_cells(config: config_dict.ConfigDict) -> list[Cell]:
    """The cells in the order in which they are measured."""
    product = itertools.product(config.seeds, config.nfes, config.networks, config.solvers)
    return [Cell(network, solver, nfe, seed) for seed, nfe, network, solver in product]


def of_cell(config: config_dict.ConfigDict, cell: Cell) -> config_dict.ConfigDict:
    """The configuration for learning a cell."""
    run = config.run.copy_and_resolve_references()
    run.network.name, run.solver.name, run.solver.nfe, run.seed = cell
    return run


def settings(config: config_dict.ConfigDict, cell: Cell) -> dict[str, Any]:
    """The settings that decide a cell's figures, as in its file."""
    given = {"baselines": config.baselines, "probes": config.probes} | of_cell(config, cell).to_dict()
    decisive = json.loads(json.dumps(given))  # as a file has it: lists for tuples
    del decisive["teacher"]["cache"]  # where, not what
    return decisive


def measured_once(workdir: Path, config: config_dict.ConfigDict, cell: Cell) -> Measured | None:
    """A cell: from its file, or measured now; None while another process measures it.

    Raises:
        ValueError: if its file is damaged, or has another configuration.
    """
    path, run = cell.path(workdir), of_cell(config, cell)
    check_writable(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(path.with_suffix(".lock")).acquire(blocking=False))
        except filelock.Timeout:
            return None
        if path.exists():
            there = read(path)
            if different := differences(there.config, settings(config, cell)):
                raise ValueError(f"{path} has another configuration: {'; '.join(different)}; take another workdir")
            return there
        device = f"{jax.devices()[0].device_kind}, jax {version('jax')}, Python {platform.python_version()}"
        methods, column = _measure(config, run, path)
        measured = Measured(cell, run.data.test, device, settings(config, cell), methods)
        write(workdir, measured, column)
        jax.clear_caches()  # cells do not share compiled programs
        return measured


def _measure(
    config: config_dict.ConfigDict, of_cell: config_dict.ConfigDict, path: Path
) -> tuple[dict[str, Figures], bytes | None]:
    """Every method's figures, and a picture of the first noise's samples; learned schedules are also saved."""
    schedules = path.parent.with_name("schedules")
    check_writable(schedules / "schedule.json")
    run = Run.of(of_cell).check()
    model, judge, target = run.model, run.judge, to_host(run.pairs[1].x_0)
    probe = Probe(run.student.model, *model.draw(run.keys[0], config.probes), judge.batch_size)
    discretizations = judge.standard_grids()
    discretizations |= comparison.baselines(config.baselines, run.student, probe, run.teacher.cache)
    of_times = Run.of(times.with_times_alone(of_cell.copy_and_resolve_references()))
    of_times = of_times.sharing(model=run.model, pairs=run.pairs)
    ends: dict[str, Ended] = {}
    for name, one in {"times": of_times, "everything": run}.items():
        learned, ends[name] = one.learn()
        learned.save(schedules / f"{path.stem}-{name}.json", model.schedule)
        discretizations[name] = learned.discretization
    methods, shown = {}, [target[:1]]
    for name, discretization in discretizations.items():
        judged, lam = judge(discretization, None), model.schedule.lam(jnp.asarray(discretization.t))
        shown.append(judged.samples[:1])
        methods[name] = _figures(judged, target, np.asarray(lam, float).tolist(), ends.get(name))
    return methods, _column(model, shown, target)


def _figures(judged: Judged, target: np.ndarray, lam: list[float], ended: Ended | None) -> Figures:
    errors = judged.errors[SQUARED_ERROR]
    mean, median = metrics.bootstrap(metrics.mean, errors), float(np.median(errors))
    learning = (ended.start, ended.network_calls) if ended else ()
    return Figures(*mean, median, judged.another_basin, frechet(judged.samples, target), lam, *learning)


def frechet(samples: np.ndarray, target: np.ndarray) -> float | None:
    """The squared Frechet distance of pixels; None if samples are not images, or fewer than features."""
    if np.ndim(samples) != 4:
        return None
    features = [metrics.pixels(images) for images in (samples, target)]
    if len(target) <= features[0].shape[1]:
        return None
    return metrics.frechet(*(metrics.statistics([of]) for of in features))


def _column(model: Pretrained, shown: list[np.ndarray], target: np.ndarray) -> bytes | None:
    """Images below each other; None if samples are not images."""
    if model.display is None or np.ndim(target) != 4:
        return None
    images = model.display(np.concatenate(shown), target[:_LIKE])
    return plots.png(images.reshape(-1, *images.shape[2:]))


def write(workdir: Path, measured: Measured, column: bytes | None) -> None:
    """Write a cell, and next to it a PNG of one noise's samples: the teacher's, and below it each method's."""
    path = measured.cell.path(workdir)
    if column is not None:
        write_atomically(path.with_suffix(".png"), column)
    methods = {name: judged._asdict() for name, judged in measured.methods.items()}
    record = measured._asdict() | {"cell": measured.cell._asdict(), "methods": methods}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read(path: Path) -> Measured:
    """Read a cell.

    Raises:
        ValueError: if the file is damaged or not a cell.
    """
    record = read_json(path)
    try:
        methods = {name: Figures(**check(one, _OF_FIGURES)) for name, one in record.pop("methods").items()}
        measured = Measured(cell=Cell(**check(record.pop("cell"), _OF_CELL)), methods=methods, **record)
        check(measured._asdict(), {"held_out": COUNT, "device": TEXT, "config": instance(dict)})
        Solver(measured.cell.solver, order=measured.config.get("solver", {}).get("order"))  # as the page names it
        all_of_a_kind = len({one.frechet is None for one in methods.values()}) == 1 and {*GRIDS, *LEARNED} <= {*methods}
        sound = all_of_a_kind and measured.cell.path(Path()).name == path.name
    except (TypeError, AttributeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: not a cell of a sweep; remove it, and it is measured again")
    return measured


def read_all(workdir: Path) -> list[Measured]:
    """The cells of a workdir that are not damaged, in the order of networks, solvers and numbers of calls."""
    cells = []
    for path in (workdir / "cells").glob("*.json"):
        with contextlib.suppress(ValueError, OSError):  # reported when it is measured
            cells.append(read(path))
    return sorted(cells, key=lambda measured: measured.cell)
