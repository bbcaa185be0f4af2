"""Compare what was learned with every hand-made grid, against a converged teacher on noise of your choice.

python -m experiments.evaluate --schedule=runs/quasar5/schedule.json
"""

from pathlib import Path

import jax
from absl import flags

from experiments import common, comparison, models
from ld3_jax.learning import make_student
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

_SCHEDULE = flags.DEFINE_string("schedule", None, "A schedule.json that experiments.train wrote.")
_NFE = flags.DEFINE_integer(
    "nfe", None, "Network calls, if a curve was learned; default the schedule's.", lower_bound=1
)
_NUM = flags.DEFINE_integer("num", 200, "How many noises.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the noise; other than the one that the schedule was learned with.")
_TEACHER_NFE = flags.DEFINE_integer("teacher_nfe", 60, "Network calls of the teacher: UniPC-3 on the logsnr grid.")
_CACHE = flags.DEFINE_string("cache", "runs/teacher", "Folder of the teacher's samples.")
_BATCH = flags.DEFINE_integer("batch_size", 25, "The most samples to integrate at a time.", lower_bound=1)
flags.mark_flags_as_required(["schedule"])


def main() -> None:
    learned, model = models.of_schedule(Path(_SCHEDULE.value), _NFE.value)
    teacher = Teacher(Solver("unipc", _TEACHER_NFE.value), "logsnr", _BATCH.value, Path(_CACHE.value), model.name)
    comparison.compare(
        make_student(model.model, model.schedule, learned.solver, decode=model.decode),
        {"learned": learned.found},
        models.teacher_pairs("teacher", model, teacher, jax.random.key(_SEED.value), _NUM.value),
        loss=learned.losses.get("loss", "l2"),
        title=str(model),
        batch_size=_BATCH.value,
        squared_error=model.squared_error,
    )


if __name__ == "__main__":
    common.run(main)
