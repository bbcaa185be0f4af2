"""Learn a schedule for a pre-trained model, and compare it with the hand-made grids.

python -m experiments.train --config=configs/galaxy.py --workdir=runs/quasar5 --config.solver.nfe=5
"""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from ml_collections import config_dict, config_flags

from experiments import common, comparison, models
from experiments.plan import Plan
from experiments.workdir import claim, recording
from ld3_jax import checkpoint, metrics, plots, steps, timesteps, train
from ld3_jax.checkpoint import LearnedSchedule
from ld3_jax.learning import Discretization, Learning, discretization, students
from ld3_jax.metrics import Student
from ld3_jax.steps import TrainState
from ld3_jax.teacher import Pairs

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results and checkpoints go.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    run(_CONFIG.value, Path(_WORKDIR.value))


def run(config: config_dict.ConfigDict, workdir: Path) -> None:
    """Learn a schedule and write everything to the workdir, going on where an earlier run of it stopped."""
    plan = Plan.of(config)
    model = models.build(models.settings_of(config))
    sharding = common.batch_sharding()
    student = metrics.make_student(
        model.noise, model.schedule, plan.student, comparison.loss_function(plan.loss), model.decode
    )
    warm_start = spanning(plan.init, student) if isinstance(plan.init, LearnedSchedule) else None
    claim(workdir, config)
    known, test = models.make_data(model, config, plan, sharding)
    train_pairs = jax.tree.map(lambda leaf: leaf[: config.data.train], known)
    valid_pairs = jax.tree.map(lambda leaf: leaf[config.data.train :], known) if config.data.valid else train_pairs

    started = time.monotonic()
    state, learning = learn(student, train_pairs, valid_pairs, plan, warm_start, config.seed, workdir, sharding)
    print(
        f"learned in {time.monotonic() - started:.1f} s, compilation included; validation loss "
        f"{float(state.start_loss):.5f} at the start, {float(state.best_loss):.5f} learned",
        flush=True,
    )

    compare = partial(
        comparison.compare,
        measures=comparison.measures(plan.loss),
        test=test,
        model=str(model),
        batch_size=learning.valid_batch,
        sharding=sharding,
    )
    found = discretization(state.best, student, learning)
    compared = compare(student, learned=found, start=warm_start, shown=model.shown)
    figures = {
        "loss": plan.loss,
        "valid": {"start": float(state.start_loss), "learned": float(state.best_loss)},
        "unseen": comparison.summary(compared.errors[comparison.SQUARED_ERROR]),
    }
    if plan.loss == "lpips":
        figures["unseen LPIPS"] = comparison.summary(compared.errors["LPIPS"])
    record = None
    if learning.nfes:
        record = checkpoint.curve_record(state.best, learning.warped, learning.max_shift, learning.nfes)
        for other in students(student, learning):
            if other.method != student.method:
                compare(other, learned=discretization(state.best, other, learning))
    learned = checkpoint.learned_schedule(
        plan.student, model.schedule, *found, model=models.identity(model), losses=figures, curve=record
    )
    checkpoint.save_schedule(workdir / "schedule.json", learned)
    draw(workdir, model, student, found, test, compared, state, f"{model}, {student.method}")
    for name in ("schedule.json", "schedule.png", "loss.png", "samples.png", "metrics.jsonl"):
        print(f"wrote {workdir / name}")


def learn(
    student: Student,
    train_pairs: Pairs,
    valid_pairs: Pairs,
    plan: Plan,
    warm_start: Discretization | None,
    seed: int,
    workdir: Path,
    sharding: NamedSharding | None,
) -> tuple[TrainState, Learning]:
    """Learn from every start, going on where an earlier run stopped; the first is the warm start, if there is one.

    Returns:
        The state with the best validation loss, and the choices that it was learned under: a curve warps the best grid.
    """
    learning, grids = plan.learning, [warm_start or plan.init]
    if plan.init == "best":
        ranking = train.rank_grids(student, train_pairs, learning, sharding=sharding)
        print("hand-made grids on the training pairs: " + ", ".join(f"{name} {loss:.5f}" for name, loss in ranking))
        grids = [name for name, _ in ranking]
    if learning.nfes:
        learning = replace(learning, warped=grids[0])
    key, *keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), plan.starts + 1)
    states = []
    for i, start in enumerate(train.starts(student, grids, plan.starts, key, learning)):
        label = f"start {i + 1} of {plan.starts}" if plan.starts > 1 else "learning"
        fresh = steps.init_state(student, train_pairs, valid_pairs, start, plan.optimizer, learning, sharding=sharding)
        with (
            checkpoint.manager(workdir / "checkpoints" / str(i)) as checkpoints,
            common.progress(label, learning.steps) as update,
        ):
            state = checkpoint.restore(checkpoints, fresh)
            with recording(workdir, i, int(state.step), checkpoints, update) as on_step:
                state = train.fit(
                    student,
                    train_pairs,
                    valid_pairs,
                    keys[i],
                    optimizer=plan.optimizer,
                    learning=learning,
                    state=state,
                    on_step=on_step,
                    sharding=sharding,
                )
        states.append(state)
    return min(states, key=lambda state: float(state.best_loss)), learning


def spanning(learned: LearnedSchedule, student: Student) -> Discretization:
    """What was learned before, if its times span the student's range."""
    t, t_c = checkpoint.times(learned)
    ends, here = (float(t[0]), float(t[-1])), (student.schedule.t_max, student.schedule.t_min)
    if not np.allclose(ends, here, rtol=1e-3):
        raise ValueError(
            f"learn.init: its times run from {ends[0]:g} to {ends[1]:g}, the model's from {here[0]:g} to {here[1]:g}"
        )
    return Discretization(t, t_c, checkpoint.coefficients(learned))


def draw(
    workdir: Path,
    model: models.PretrainedModel,
    student: Student,
    learned: Discretization,
    test: Pairs,
    compared: comparison.Comparison,
    state: TrainState,
    what: str,
) -> None:
    """The run's pictures: the grids, the loss, and samples from the same noise."""
    schedule, n = model.schedule, student.method.n_steps
    hand_made = {name: np.asarray(schedule.lam(timesteps.grid(name, schedule, n))) for name in timesteps.GRIDS}
    lam, lam_c = (np.asarray(schedule.lam(t)) for t in learned[:2])
    plots.grids(workdir / "schedule.png", {"learned": lam, "learned, for the network": lam_c}, hand_made, what)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    plots.losses(workdir / "loss.png", lines, ("validation at the start", float(state.start_loss)), what)
    errors = compared.errors[comparison.SQUARED_ERROR]
    best = comparison.best_hand_made(errors)
    labels = {"learned": "learned", best: f"best by hand:\n{best}"}
    rows = {"teacher": np.asarray(test.x_0[: model.shown])}
    rows |= {label: compared.samples[name] for name, label in labels.items()}
    notes = {label: [f"{loss:.4f}" for loss in errors[name][: model.shown]] for name, label in labels.items()}
    model.picture(workdir / "samples.png", rows, f"{what}: samples from the same noise", notes)


if __name__ == "__main__":
    common.run(main)
