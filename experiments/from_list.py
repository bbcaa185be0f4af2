"""Make a schedule.json from published times or a published learned solver, to sample with, to judge, or to start from.

python -m experiments.from_list --config=configs/galaxies.py:hsc32 --list=sigmas.txt --out=runs/theirs.json

The list is the name of a published grid (ays-sd15, gits-sd15, optimal-flux, ...), a text file of noise levels (sigma /
alpha, or sigma for flows; the last one may be 0), or LD3's best_v1.pt or best_v2.pt. Levels are interpolated to the
configuration's number of steps, linearly in their logarithm. The result is a normal schedule: `experiments.evaluate
--schedule=runs/theirs.json`, `experiments.train --config.learn.init=runs/theirs.json`.

A learned solver is EPD's or DyWeight's network-snapshot.pkl, DyWeight's .pt of Flux, a checkpoint of the Generalized
Solver, or NeuralSolver's module of numbers. It is written as changes of the configuration's solver, with as many calls.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments import command
from experiments.run import Run
from ld3_jax.disk import check_writable
from ld3_jax.interop.imported_files import read_times
from ld3_jax.interop.imported_solvers import Imported, holds_solver, read_solver
from ld3_jax.learning import Learned
from ld3_jax.published import PUBLISHED

_CONFIG = command.config_flag("Configuration: its network and solver.")
_LIST = command.path_flag("list", None, f"A file, or one of {', '.join(PUBLISHED)}.")
_SIDE = flags.DEFINE_integer("side", 512, "Side of images in pixels, for DyWeight's .pt of Flux.", lower_bound=16)
_OUT = command.path_flag("out", None, "The schedule.json to write.")
flags.mark_flags_as_required(["config", "list", "out"])


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    run = Run.of(_CONFIG.value)
    solver, model = run.solver, run.model
    if holds_solver(Path(_LIST.value)):
        found, notes = read_solver(_LIST.value, model.schedule, solver, side=_SIDE.value)
    else:
        found, notes = Imported(read_times(_LIST.value, model.schedule, solver.n_steps), [])
    lam, t_start = np.asarray(found.lam(model.schedule)), model.schedule.t_start
    learned = Learned(solver, found, lam, model.identity(), t_start=t_start)
    learned.save(out, model.schedule)
    print(f"wrote {out}: {_LIST.value} as {solver.n_steps} steps of {solver}")
    for note in notes:
        print(f"  {note}")


if __name__ == "__main__":
    command.run(main)
