"""Judge hand-made grids, other methods' grids and what is learned, for many networks, solvers and numbers of calls.

python -m experiments.sweep --config=configs/sweeps/galaxies.py --workdir=runs/galaxies

Every cell (a network, a solver, a number of calls, a seed) is saved once it is measured, and not measured again; one
that fails is reported and stops nothing. Several processes may work on one workdir. sweep.csv has a line for each
method of each cell, sweep.html and sweep.png draw them.
"""

import contextlib
import itertools
import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from configs import times
from experiments import cells, common, comparison, measurements, page
from experiments.cells import Cell, Judged
from experiments.plan import WHAT, Plan
from ld3_jax import metrics, plots
from ld3_jax.baselines import BASELINES, Probe
from ld3_jax.batches import to_host
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Ended, on_grid
from ld3_jax.learning.task import losses_in_batches, run_in_batches
from ld3_jax.pretrained import MODELS, Pretrained
from ld3_jax.solvers import SOLVERS

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_WORKDIR = common.path_flag("workdir", None, "Where cells, sweep.csv, sweep.html and sweep.png go.")
flags.mark_flags_as_required(["config", "workdir"])

_KEYS = ("networks", "solvers", "nfes", "seeds", "baselines", "probes", "run")
# What ends one cell: learning that fails, a network whose files or packages are missing, too little memory. Anything
# else, a full disk above all, would end every other cell after minutes of work, too.
_OF_A_CELL = (ValueError, FloatingPointError, RuntimeError, FileNotFoundError, ImportError)
_LIKE = 100  # of the teacher's samples, whose brightness pictures are scaled by


def main() -> None:
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    if jax.process_count() > 1:
        raise ValueError("one process measures a cell: start several sweeps on one workdir, without --distributed")
    check(config)
    for name in ("sweep.csv", "sweep.html", "sweep.png"):
        check_writable(workdir / name)
    todo, failed, done = all_cells(config), [], []
    for i, cell in enumerate(todo, 1):
        print(f"cell {i} of {len(todo)}: {cell}", flush=True)
        known = cell.path(workdir).exists()
        try:
            measured = measured_once(workdir, config, cell)
        except _OF_A_CELL as error:
            failed.append(f"{cell}: {' '.join(str(error).split())}")
            print(f"  failed: {error}", flush=True)
            continue
        if measured is None:
            print("  another process is measuring it", flush=True)
            continue
        done.append(cell)
        for name, judged in measured.methods.items():
            frechet = "" if judged.frechet is None else f"  Frechet {judged.frechet:.4g}"
            print(
                f"  {name:<12} {judged.mean:.5f} ({judged.median:.5f}) {judged.another_basin:.1%}{frechet}", flush=True
            )
        if not known:  # so that a kill leaves a report of all that was measured
            write_report(workdir)
    write_report(workdir)
    for line in cells.summary(cells.read_all(workdir)):
        print(f"\n{line}", flush=True)
    if gone := [str(cell) for cell in done if not cell.path(workdir).exists()]:
        raise OSError(f"{workdir} was deleted meanwhile, with {', '.join(gone)}; the same command measures them again")
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} cells failed; the others are measured: {'; '.join(failed)}")


def check(config: config_dict.ConfigDict) -> None:
    """Refuse what no cell could be made of.

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
    if set(learn.what) != set(WHAT) or learn.curve or learn.by_part:
        raise ValueError(
            f"run.learn.what must be all of {list(WHAT)}, run.learn.curve False and run.learn.by_part False: the sweep "
            f"learns times, and everything; got {list(learn.what)}, {learn.curve} and {learn.by_part}"
        )
    for cell in all_cells(config):
        Plan.of(of_cell(config, cell))


def all_cells(config: config_dict.ConfigDict) -> list[Cell]:
    """The cells in the order in which they are measured."""
    product = itertools.product(config.seeds, config.nfes, config.networks, config.solvers)
    return [Cell(network, solver, nfe, seed) for seed, nfe, network, solver in product]


def of_cell(config: config_dict.ConfigDict, cell: Cell) -> config_dict.ConfigDict:
    """The configuration that a cell is learned with."""
    run = config.run.copy_and_resolve_references()
    run.network.name, run.solver.name, run.solver.nfe, run.seed = cell
    return run


def settings(config: config_dict.ConfigDict, cell: Cell) -> dict[str, Any]:
    """What decides a cell's figures, as its file has it."""
    given = {"baselines": config.baselines, "probes": config.probes} | of_cell(config, cell).to_dict()
    found = json.loads(json.dumps(given))  # as a file has it: lists for tuples
    del found["teacher"]["cache"]  # where, not what
    return found


def measured_once(workdir: Path, config: config_dict.ConfigDict, cell: Cell) -> cells.Measured | None:
    """A cell: as its file has it, else measured now; None while another process measures it.

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
            there = cells.read(path)
            if different := common.differences(there.config, settings(config, cell)):
                raise ValueError(f"{path} has another configuration: {'; '.join(different)}; take another workdir")
            return there
        device = f"{jax.devices()[0].device_kind}, jax {version('jax')}, Python {platform.python_version()}"
        measured, column = measure(config, run, path)
        found = cells.Measured(cell, run.data.test, device, settings(config, cell), measured)
        cells.write(workdir, found, column)
        jax.clear_caches()  # no cell shares a program with another
        return found


def measure(
    config: config_dict.ConfigDict, run: config_dict.ConfigDict, path: Path
) -> tuple[dict[str, Judged], bytes | None]:
    """Every method's figures, and a picture of the first noise's samples; what is learned is saved, too."""
    schedules = path.parent.with_name("schedules")
    check_writable(schedules / "schedule.json")
    case = measurements.prepared(run)
    student, target = case.student._replace(loss=case.model.squared_error), to_host(case.held_out.x_0)
    found: dict[str, Discretization] = {name: on_grid(name, student.schedule, student.solver) for name in GRIDS}
    size = run.learn.valid_batch
    states = jax.tree.map(lambda leaf: leaf[: config.probes], (case.known.x_T, case.known.cond))
    probe = Probe(student.model, *states, size)
    found |= comparison.baselines(config.baselines, student, probe, Path(run.teacher.cache))
    of_times = Plan.of(times.with_times_alone(run.copy_and_resolve_references()))
    ends: dict[str, Ended] = {}
    for name, plan in {"times": of_times, "everything": case.plan}.items():
        learned, ends[name] = measurements.fitted(case._replace(plan=plan))
        learned.save(schedules / f"{path.stem}-{name}.json", student.schedule)
        found[name] = learned.found
    judged, shown = {}, [target[:1]]
    for name, of_method in found.items():
        samples = run_in_batches(student, of_method, case.held_out.x_T, case.held_out.cond, batch_size=size)
        errors = to_host(losses_in_batches(student.loss, samples, case.held_out.x_0, batch_size=size))
        samples = to_host(samples)
        shown.append(samples[:1])
        judged[name] = Judged(
            *metrics.bootstrap(metrics.mean, errors),
            median=float(np.median(errors)),
            another_basin=comparison.in_another_basin(errors, case.held_out.x_0, case.model.squared_error),
            frechet=frechet(samples, target),
            lam=np.asarray(student.schedule.lam(jnp.asarray(of_method.t)), float).tolist(),
            start=ends[name].start if name in ends else "",
            network_calls=ends[name].network_calls if name in ends else 0,
        )
    return judged, _column(case.model, shown, target)


def _column(model: Pretrained, shown: list[np.ndarray], target: np.ndarray) -> bytes | None:
    """Images below each other; None of what is no image."""
    if model.display is None or np.ndim(target) != 4:
        return None
    images = np.clip(model.display(np.concatenate(shown), target[:_LIKE]), 0, 1)
    return plots.png(images.reshape(-1, *images.shape[2:]))


def frechet(samples: np.ndarray, target: np.ndarray) -> float | None:
    """The squared Frechet distance of pixels; None of what is no image, and of fewer samples than features."""
    if np.ndim(samples) != 4:
        return None
    features = [metrics.pixels(images) for images in (samples, target)]
    if len(target) <= features[0].shape[1]:
        return None
    return metrics.frechet(*(metrics.statistics([of]) for of in features))


def write_report(workdir: Path) -> None:
    """sweep.csv, sweep.html and sweep.png of all cells so far."""
    command = shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]])
    with filelock.FileLock(workdir / "report.lock"):  # drawing takes seconds, and the last to draw knows all cells
        if not (found := cells.read_all(workdir)):
            return
        write_atomically(workdir / "sweep.csv", cells.as_csv(found))
        write_atomically(workdir / "sweep.png", page.picture(found))
        write_atomically(workdir / "sweep.html", page.of_sweep(found, workdir, command).encode())


if __name__ == "__main__":
    common.run(main)
