"""Compare a learned schedule with other grids, against a converged teacher on noise of your choice.

python -m experiments.evaluate --schedule=runs/quasar5/schedule.json
python -m experiments.evaluate --schedule=runs/quasar5/schedule.json --path=runs/quasar5/path.gif
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import animation, command, given, run
from experiments.configuration import naming
from ld3_jax import comparison
from ld3_jax.baselines import BASELINES, Probe
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.learning import Learned, make_student
from ld3_jax.pretrained import Pretrained
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

given.define_flags()
_NUM = flags.DEFINE_integer("num", 200, "How many noises.", **command.COUNT)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the noise; different from the seed of learning.", **command.SEED)
_TEACHER_NFE = flags.DEFINE_integer("teacher_nfe", 60, "Network calls of the teacher: UniPC-3 on the logsnr grid.")
_CACHE = command.path_flag("cache", "runs/teacher", "Folder of the teacher's samples.")
_BASELINES = flags.DEFINE_list("baselines", ["dmn"], f"Other methods' grids to compare with: {', '.join(BASELINES)}.")
_DISTANCES = flags.DEFINE_bool("distances", False, "Also compare the distributions of samples; use --num=2000.")
_BATCH = flags.DEFINE_integer("batch_size", 25, "The most samples to integrate at a time.", **command.COUNT)
_OUT = command.path_flag("out", None, "A JSON file for what is printed and the error of every noise.")
_PATH = command.path_flag("path", None, "A GIF of the states on the way, beside a standard grid's and the teacher's.")
flags.mark_flags_as_required(["schedule"])

_PROBES, _FEW = 64, 100  # states that baselines use; the largest size of a state for which the bound is computed


def main() -> None:
    with naming("--teacher_nfe"):
        solver = Solver("unipc", _TEACHER_NFE.value)
    if unknown := set(_BASELINES.value) - set(BASELINES):
        raise ValueError(f"--baselines takes some of {list(BASELINES)}, got {sorted(unknown)}")
    if _PATH.value:
        animation.check_path(Path(_PATH.value))
    if _OUT.value:
        check_writable(Path(_OUT.value))
    teacher = Teacher(solver, "logsnr", _BATCH.value, Path(_CACHE.value))
    learned, model = given.load(teacher)
    teacher = replace(teacher, identity=model.name)
    if _PATH.value:
        animation.check_model(model)
    if _DISTANCES.value:
        comparison.check_distances(model, _NUM.value)
    comparison.shape_of_loss(learned.losses.get("loss", "l2"), model)  # before the teacher runs
    figures = _compare(learned, model, teacher)
    if _OUT.value:
        of_teacher = {"grid": teacher.grid, "solver": asdict(teacher.solver)}
        record = {"schedule": flags.FLAGS.schedule, "solver": asdict(learned.solver), "teacher": of_teacher}
        record |= {"seed": _SEED.value, "device": jax.devices()[0].device_kind, **figures}
        write_atomically(Path(_OUT.value), (json.dumps(record, indent=2) + "\n").encode())
        print(f"wrote {_OUT.value}")


def _compare(learned: Learned, model: Pretrained, teacher: Teacher) -> dict:
    key = jax.random.key(_SEED.value)
    test = run.teacher_pairs("teacher", model, teacher, key, _NUM.value)
    loss = comparison.loss_by_name(learned.losses.get("loss", "l2"), model, test.x_0)
    student = make_student(model.model, model.schedule, learned.solver, loss, model.decode)
    probe = Probe(model.model, *model.draw(jax.random.fold_in(key, 1), _PROBES), _BATCH.value)
    times = {"learned": learned.discretization} | comparison.baselines(_BASELINES.value, student, probe, teacher.cache)
    judge = comparison.Judge.of(student, test, model, _BATCH.value)
    compared = comparison.compare(judge, times, str(model), _NUM.value if _DISTANCES.value else 0)
    compared.print_intervals()
    if _PATH.value:
        best = compared.best_standard
        chosen = {"learned": learned.discretization, best: judge.standard_grids()[best]}
        animation.draw(Path(_PATH.value), model, student, chosen, test, teacher.solver)
    figures = {"errors": compared.figures()}
    if _DISTANCES.value:
        samples = {name: one.samples for name, one in compared.judged.items()}
        figures["distances"] = comparison.print_distances(samples, np.asarray(test.x_0))
    if math.prod(model.shape) <= _FEW and _NUM.value > 1:
        figures["bound"] = comparison.print_bound(judge, learned.discretization, teacher)
    return figures


if __name__ == "__main__":
    command.run(main)
