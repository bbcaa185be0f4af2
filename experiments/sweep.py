"""Compare standard grids, other methods' grids and learned ones for many networks, solvers and numbers of calls.

python -m experiments.sweep --config=configs/sweeps/galaxies.py --workdir=runs/galaxies

Each cell (a network, a solver, a number of calls, a seed) is saved once it is measured, and not measured again; a cell
that fails is reported and does not stop the others. Several processes may share one workdir. sweep.csv has a line for
each method of each cell; sweep.html and sweep.png draw them.
"""

import shlex
import sys
from pathlib import Path

import filelock
import jax
from absl import flags

from experiments import cells, command, page
from ld3_jax.disk import check_writable, write_atomically

_CONFIG = command.config_flag("Configuration file.")
_WORKDIR = command.path_flag("workdir", None, "Where cells, sweep.csv, sweep.html and sweep.png go.")
flags.mark_flags_as_required(["config", "workdir"])

# Errors that end one cell: learning that fails, missing files or packages of a network, lack of memory. Anything
# else, above all a full disk, would also end every other cell after minutes of work.
_OF_A_CELL = (ValueError, FloatingPointError, RuntimeError, FileNotFoundError, ImportError)


def main() -> None:
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    if jax.process_count() > 1:
        raise ValueError("one process measures a cell: start several sweeps on one workdir, without --distributed")
    cells.check_config(config)
    for name in ("sweep.csv", "sweep.html", "sweep.png"):
        check_writable(workdir / name)
    todo, failed, done = cells.all_cells(config), [], []
    for i, cell in enumerate(todo, 1):
        print(f"cell {i} of {len(todo)}: {cell}", flush=True)
        known = cell.path(workdir).exists()
        try:
            measured = cells.measured_once(workdir, config, cell)
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
                f"  {page.label(name):<20} {judged.mean:.5f} ({judged.median:.5f}) {judged.another_basin:.1%}{frechet}",
                flush=True,
            )
        if not known:  # so that a killed process leaves a report of all measured cells
            write_report(workdir)
    write_report(workdir)
    for line in page.summary(cells.read_all(workdir)):
        print(f"\n{line}", flush=True)
    if gone := [str(cell) for cell in done if not cell.path(workdir).exists()]:
        raise OSError(f"{workdir} was deleted meanwhile, with {', '.join(gone)}; the same command measures them again")
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} cells failed; the others are measured: {'; '.join(failed)}")


def write_report(workdir: Path) -> None:
    """sweep.csv, sweep.html and sweep.png of all cells so far."""
    command = shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]])
    with filelock.FileLock(workdir / "report.lock"):  # drawing takes seconds; the last process knows all cells
        if not (measured := cells.read_all(workdir)):
            return
        write_atomically(workdir / "sweep.csv", page.as_csv(measured))
        write_atomically(workdir / "sweep.png", page.picture(measured))
        write_atomically(workdir / "sweep.html", page.of_sweep(measured, workdir, command).encode())


if __name__ == "__main__":
    command.run(main)
