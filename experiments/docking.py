"""Measure the table of docs/docking.md: poses in few network calls against a converged teacher.

python -m experiments.docking --out=runs/docking.json

Every row is printed and saved once it is measured; rows that the file already holds are not measured again. The table
is written beside it as Markdown.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict

from configs import docking
from experiments import common, measurements, models
from experiments.plan import Plan
from ld3_jax import learning, losses
from ld3_jax.disk import write_atomically
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Student, on_grid
from ld3_jax.poses import checks, molecules
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

_OUT = flags.DEFINE_string("out", None, "A JSON file for the rows.")
_NAME = flags.DEFINE_string("name", "ergotamine", "The complex.")
_NFES = flags.DEFINE_list("nfes", ["6", "20", "4", "8", "10"], "Numbers of network calls.")
_ROWS = flags.DEFINE_list("rows", None, "Which rows; default all.")
_TEST = flags.DEFINE_integer("test", 500, "Noises that were not learned from.", lower_bound=1)
_CHECKED = flags.DEFINE_integer("checked", 0, "How many of the poses PoseBusters checks, seconds each.", lower_bound=0)
flags.mark_flags_as_required(["out"])

Measured = dict[str, Any]
WHAT = {
    "learned, one schedule": {"what": ("times", "shifts"), "by_part": False},
    "learned, three schedules": {"what": ("times", "shifts"), "by_part": True},
    "learned, everything": {"what": ("times", "shifts", "coefficients"), "by_part": True},
}


def main() -> None:
    out = Path(_OUT.value)
    rows = measurements.read(out).get("rows", {})
    for nfe in map(int, _NFES.value):
        case = prepared(_NAME.value, nfe, _TEST.value)
        for name, measure in measures(case, nfe).items():
            key = f"{nfe} {name}"
            if key not in rows and (_ROWS.value is None or name in _ROWS.value):
                rows[key] = measured(case, *measure())
                write_atomically(out, (json.dumps({"rows": rows}, indent=2) + "\n").encode())
                write_atomically(out.with_suffix(".md"), markdown(rows).encode())
                print(
                    f"{key:<32}" + "  ".join(f"{what} {_shown(value)}" for what, value in rows[key].items()), flush=True
                )
                jax.clear_caches()


def prepared(name: str, nfe: int, test: int) -> measurements.Case:
    """The student of the configuration with so many calls, and its pairs."""
    config = docking.get_config()
    config.network.name, config.solver.nfe, config.data.test = name, nfe, test
    plan, model = Plan.of(config), models.of_config(config)
    keys = jax.random.split(jax.random.key(config.seed), 2)
    known, held_out = (
        models.teacher_pairs("teacher", model, plan.teacher, key, count)
        for key, count in zip(keys, (config.data.train, test), strict=True)
    )
    student = learning.make_student(
        model.model, model.schedule, plan.solver, losses.both(known.x_0, model.squared_error), model.decode
    )
    return measurements.Case(student, known, held_out, plan, config.seed)


def measures(case: measurements.Case, nfe: int) -> dict[str, Callable[[], tuple[Student, Discretization]]]:
    """Names of rows, and what they run."""
    student = case.student

    def hand_made(grid: str, solver: Solver) -> tuple[Student, Discretization]:
        return student._replace(solver=solver), on_grid(grid, student.schedule, solver)

    def best() -> tuple[Student, Discretization]:
        def loss(grid: str) -> float:
            return float(learning.distances(*hand_made(grid, student.solver), case.known).mean())

        return hand_made(min(GRIDS, key=loss), student.solver)

    return {
        "DiffDock's steps": partial(hand_made, "uniform", Solver("euler", nfe)),
        "uniform": partial(hand_made, "uniform", student.solver),
        "best hand-made": best,
        **{name: partial(learned, case, name) for name in WHAT},
    }


def learned(case: measurements.Case, name: str) -> tuple[Student, Discretization]:
    """What is learned from the grid that is best before learning."""
    config = config_dict.ConfigDict(docking.get_config())
    config.solver.nfe = case.student.solver.nfe
    config.learn.update(WHAT[name])
    plan = Plan.of(config)
    key = jax.random.fold_in(jax.random.key(case.seed), 1)
    task = learning.make_task(case.student, case.known, key, plan.parametrisation, plan.learner)
    start = learning.rank(task)[0].found
    return case.student, learning.describe(task, learning.learn(task, start).state).found


def measured(case: measurements.Case, student: Student, found: Discretization) -> Measured:
    """Distances to the teacher's poses with 95 % intervals."""
    held_out: Pairs = case.held_out
    samples = learning.student.run_in_batches(student, found, held_out.x_T, batch_size=50)
    squared = learning.student.losses_in_batches(case.student.loss.args[1], samples, held_out.x_0, batch_size=50)
    rmsd = np.sqrt(np.asarray(squared))
    row: Measured = {"median RMSD": checks.median(rmsd), "mean squared": float(np.mean(rmsd**2))}
    row |= {"under 0.5": checks.share(rmsd < 0.5), "under 2": checks.share(rmsd < 2.0)}
    if _CHECKED.value:
        some = np.asarray(samples)[: _CHECKED.value]
        row["passes checks"] = checks.share(checks.passes(molecules.load(_NAME.value), some))
    return row


def markdown(rows: dict[str, Measured]) -> str:
    """The rows as a table."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| calls | | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for key, row in rows.items():
        nfe, name = key.split(" ", 1)
        lines.append(f"| {nfe} | {name} | " + " | ".join(_shown(row.get(column, "")) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, str | float):
        return value if isinstance(value, str) else f"{value:.3g}"
    middle, low, high = value
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    common.run(main)
