"""Learn a discretisation for a pre-trained model, and compare it with the hand-made grids.

python -m experiments.train --config=configs/galaxy.py --workdir=runs/quasar5 --config.solver.nfe=5

Any key of configs/default.py can be set like the last one. --distributed runs on several processes; see --helpfull.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_dict, config_flags

from experiments import common, comparison, models, pictures, workdir
from experiments.comparison import Measures
from experiments.plan import Plan
from ld3_jax import learning
from ld3_jax.learning import Ended, Learned, Task
from ld3_jax.pretrained import Pretrained
from ld3_jax.teacher import Pairs

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_WORKDIR = common.path_flag("workdir", None, "Where results and checkpoints go.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    run(_CONFIG.value, Path(_WORKDIR.value))


def run(config: config_dict.ConfigDict, folder: Path) -> None:
    """Learn and write everything to the workdir, going on where an earlier run of it stopped."""
    plan = Plan.of(config)
    model = models.of_config(config)
    start = plan.start(model.schedule)
    measures = comparison.load_measures(plan.loss, model)
    watch = common.Stopwatch()
    with workdir.held(folder, config):
        with watch("teacher"):
            known, test = models.known_and_held_out(config, plan.teacher, model)
        loss = comparison.loss_function(plan.loss, known.x_0, measures)
        student = learning.make_student(model.model, model.schedule, plan.solver, loss, model.decode)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        task = learning.make_task(student, known, key, plan.parametrisation, plan.learner)
        workdir.claim(folder, config)
        with workdir.keeping_seconds(folder, watch.seconds), watch("learning"):
            ended = workdir.learn(folder, task, start)
        workdir.report(folder, ended, watch.seconds)
        _write(folder, plan, model, task, ended, test, measures)


def _write(
    folder: Path, plan: Plan, model: Pretrained, task: Task, ended: Ended, test: Pairs, measures: Measures
) -> None:
    """Compare what was learned, and write it with its pictures."""
    student, learned = task.student, dataclasses.replace(learning.describe(task, ended.state), model=model.identity())
    found = {"learned": learned.found} | ({"start": plan.init.found} if isinstance(plan.init, Learned) else {})
    arguments = {"measures": measures, "title": str(model), "batch_size": plan.learner.valid_batch}
    compared = comparison.compare(student, found, test, shown=model.shown, **arguments)
    figures = {"loss": plan.loss, **learned.losses} | {
        "unseen" + ("" if measure == comparison.SQUARED_ERROR else f" {measure}"): comparison.summary(
            errors, compared.astray
        )
        for measure, errors in compared.errors.items()
    }
    learned = dataclasses.replace(learned, losses=figures)
    learned.save(folder / "schedule.json", model.schedule)
    pictures.draw(folder, model, learned, test, compared, float(ended.state.start_loss))
    for name in workdir.FILES:
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    common.run(main)
