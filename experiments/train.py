"""Learn a discretisation for a pre-trained model, and compare it with the standard grids.

python -m experiments.train --config=configs/galaxy.py --workdir=runs/quasar5 --config.solver.nfe=5

Any key of configs/default.py can be set like the last one. --distributed runs on several processes; see --helpfull.
"""

import dataclasses
from pathlib import Path

from absl import flags
from ml_collections import config_dict

from experiments import certainty, command, outline, workdir
from experiments.run import Run
from ld3_jax import comparison, recording
from ld3_jax.learning import Ended, Learned

_CONFIG = command.config_flag("Configuration file.")
_WORKDIR = command.path_flag("workdir", None, "Where results and checkpoints go.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    run(_CONFIG.value, Path(_WORKDIR.value))


def run(config: config_dict.ConfigDict, folder: Path) -> None:
    """Learn and write everything to the workdir, continuing where an earlier run stopped."""
    this_run = Run.of(config).check()
    watch = command.Stopwatch()
    record = config_dict.ConfigDict({**config.to_dict(), "contents": this_run.contents()})
    with workdir.held(folder, record):
        if to_come := outline.calls(this_run):
            print(to_come, flush=True)
        with watch("teacher"):
            task = this_run.task
        workdir.claim(folder, record)
        with workdir.keeping_seconds(folder, watch.seconds), watch("learning"):
            ended = recording.learn(folder, task, this_run.start, workdir.watched)
        workdir.report(folder, ended, watch.seconds)
        _write(folder, this_run, ended)


def _write(folder: Path, this_run: Run, ended: Ended) -> None:
    """Compare the learned schedule, and write it with its pictures."""
    learned, model, start = this_run.learned(ended), this_run.model, this_run.init
    times = {"learned": learned.discretization} | (
        {"start": start.discretization} if isinstance(start, Learned) else {}
    )
    compared = comparison.compare(this_run.judge, times, str(model), model.shown)
    workdir.report_certainty(folder, certainty.of(this_run, learned, compared))
    unseen = {f"unseen {measure}": compared.summaries(measure) for measure in compared.apart}
    unseen = {"unseen": unseen.pop(f"unseen {comparison.SQUARED_ERROR}")} | unseen
    learned = dataclasses.replace(learned, losses={"loss": this_run.config.learn.loss, **learned.losses, **unseen})
    learned.save(folder / "schedule.json", model.schedule)
    workdir.draw(folder, this_run, learned, compared, float(ended.state.start_loss))
    for name in workdir.FILES:
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    command.run(main)
