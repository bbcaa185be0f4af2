"""Compare what was learned with other grids, against a converged teacher on noise of your choice.

python -m experiments.evaluate --schedule=runs/quasar5/schedule.json
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, comparison, distributions, models
from ld3_jax.baselines import BASELINES, Probe
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.learning import Learned, Student, kl_bound, make_student
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, Teacher

_SCHEDULE, _NFE, _MOVED = common.schedule_flags()
_NUM = flags.DEFINE_integer("num", 200, "How many noises.", **common.COUNT)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the noise; not the one it was learned with.", **common.SEED)
_TEACHER_NFE = flags.DEFINE_integer("teacher_nfe", 60, "Network calls of the teacher: UniPC-3 on the logsnr grid.")
_CACHE = common.path_flag("cache", "runs/teacher", "Folder of the teacher's samples.")
_BASELINES = flags.DEFINE_list("baselines", ["dmn"], f"Other methods' grids to compare with: {', '.join(BASELINES)}.")
_DISTANCES = flags.DEFINE_bool("distances", False, "Compare the distributions of samples, too; use --num=2000.")
_BATCH = flags.DEFINE_integer("batch_size", 25, "The most samples to integrate at a time.", **common.COUNT)
_OUT = common.path_flag("out", None, "A JSON file for what is printed and the error of every noise.")
flags.mark_flags_as_required(["schedule"])

_PROBES = 64  # states that the baselines look at the model with
_FEW_NUMBERS = 100  # a state with no more of them has its densities compared, too


def main() -> None:
    try:
        solver = Solver("unipc", _TEACHER_NFE.value)
    except ValueError as error:
        raise ValueError(f"--teacher_nfe: {error}") from error
    if unknown := set(_BASELINES.value) - set(BASELINES):
        raise ValueError(f"--baselines takes some of {list(BASELINES)}, got {sorted(unknown)}")
    if _OUT.value:
        check_writable(Path(_OUT.value))
    learned, model = models.of_schedule(Path(_SCHEDULE.value), _NFE.value, _MOVED)
    if _DISTANCES.value:
        distributions.check(model, _NUM.value)
    measures = comparison.load_measures(learned.losses.get("loss", "l2"), model)
    teacher = Teacher(solver, "logsnr", _BATCH.value, Path(_CACHE.value), model.name)
    student = make_student(model.model, model.schedule, learned.solver, decode=model.decode)
    key = jax.random.key(_SEED.value)
    test = models.teacher_pairs("teacher", model, teacher, key, _NUM.value)
    probe = Probe(model.model, *model.draw(jax.random.fold_in(key, 1), _PROBES), _BATCH.value)
    compared = comparison.compare(
        student,
        {"learned": learned.found} | comparison.baselines(_BASELINES.value, student, probe, Path(_CACHE.value)),
        test,
        measures=measures,
        title=str(model),
        batch_size=_BATCH.value,
        shown=_NUM.value if _DISTANCES.value else 0,
    )
    comparison.print_intervals(compared)
    found: dict[str, Any] = {"errors": comparison.figures(compared)}
    if _DISTANCES.value:
        found["distances"] = distributions.print_distances(compared.samples, np.asarray(test.x_0))
    if math.prod(model.shape) <= _FEW_NUMBERS and _NUM.value > 1:
        found["bound"] = _print_bound(student, learned, teacher, test)
    if _OUT.value:
        _write(Path(_OUT.value), student.solver, teacher, found)


def _write(out: Path, solver: Solver, teacher: Teacher, found: dict[str, Any]) -> None:
    record = {
        "schedule": _SCHEDULE.value,
        "solver": dataclasses.asdict(solver),
        "teacher": {"grid": teacher.grid, "solver": dataclasses.asdict(teacher.solver)},
        "seed": _SEED.value,
        "device": jax.devices()[0].device_kind,
    }
    write_atomically(out, (json.dumps(record | found, indent=2) + "\n").encode())
    print(f"wrote {out}")


def _print_bound(student: Student, learned: Learned, teacher: Teacher, test: Pairs) -> dict[str, float] | None:
    try:
        bound = kl_bound(student, learned.found, teacher, test.x_T, test.cond)
    except ValueError as error:
        print(f"no bound on KL(teacher || learned): {error}")
        return None
    print(f"KL(teacher || learned) {bound.kl:.4f} +- {bound.kl_error:.4f} nats, LD3's bound on it {bound.value:.4f}")
    print(
        f"({bound.matched:.1%} of the noises were matched; for {bound.folded:.1%} of those the two determinants have "
        "opposite signs)"
    )
    return bound._asdict()


if __name__ == "__main__":
    common.run(main)
