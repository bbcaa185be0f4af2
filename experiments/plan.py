"""A configuration as values."""

from dataclasses import dataclass, replace
from pathlib import Path

import optax
from ml_collections import config_dict

from ld3_jax import checkpoint, losses, optimizers, timesteps
from ld3_jax.checkpoint import LearnedSchedule
from ld3_jax.solvers import Method
from ld3_jax.steps import Learning


@dataclass(frozen=True)
class Plan:
    """A configuration as values, checked before anything is computed."""

    student: Method
    teacher: Method
    teacher_grid: str
    learning: Learning
    optimizer: optax.GradientTransformation
    loss: str
    init: str | LearnedSchedule
    starts: int

    @classmethod
    def of(cls, config: config_dict.ConfigDict) -> "Plan":
        """Read a configuration.

        Raises:
            ValueError: if a value is not one that exists; it names the key, what was given and what is allowed.
        """
        learn, student = config.learn, _method(config.solver)
        choices = {name: learn[name] for name in Learning.__dataclass_fields__ if name in learn}
        choices |= {"nfes": learn.nfes if learn.curve else (), "floors": (learn.logits_floor, learn.shifts_floor)}
        learning = Learning(**choices)
        for nfe in learning.nfes:
            replace(student, nfe=nfe)  # refuses what the solver cannot do
        init = _warm_start(Path(learn.init), student, learning) if learn.init.endswith(".json") else learn.init
        for key, value, allowed in (
            ("learn.loss", learn.loss, [*losses.LOSSES, "lpips"] if learn.learner != "lm" else losses.OF_SQUARES),
            ("learn.init", "best" if isinstance(init, LearnedSchedule) else init, [*timesteps.GRIDS, "best"]),
            ("teacher.grid", config.teacher.grid, timesteps.GRIDS),
            ("learn.logits_rule", learn.logits_rule, optimizers.RULES),
            ("learn.shifts_rule", learn.shifts_rule, optimizers.RULES),
            ("learn.coefficients_rule", learn.coefficients_rule, optimizers.RULES),
        ):
            if value not in allowed:
                raise ValueError(f"{key} must be one of {sorted(allowed)}, got {value!r}")
        for name, least in (("train", 1), ("valid", 0), ("test", 1)):
            if config.data[name] < least:
                raise ValueError(f"data.{name} must be at least {least}, got {config.data[name]}")
        if learning.batch_size > config.data.train:
            raise ValueError(f"learn.batch_size {learning.batch_size} exceeds data.train {config.data.train}")
        if learn.starts < 1:
            raise ValueError(f"learn.starts must be at least 1, got {learn.starts}")
        n = 1 if learning.nfes else student.n_steps
        optimizer = optimizers.make_optimizer(
            learn.logits_rule,
            learn.logits_rate / n,
            learn.shifts_rule,
            learn.shifts_rate / n,
            learning.steps,
            learn.coefficients_rule,
            learn.coefficients_rate / n,
        )
        if learning.learner == "lm":
            optimizer = optimizers.levenberg_marquardt()
        teacher = _method(config.teacher)
        return cls(student, teacher, config.teacher.grid, learning, optimizer, learn.loss, init, learn.starts)


def _warm_start(path: Path, student: Method, learning: Learning) -> LearnedSchedule:
    """What was learned before, to start from."""
    if not path.is_file():
        raise FileNotFoundError(f"learn.init: no file {path}; a run that learns the times writes one")
    learned = checkpoint.load_schedule(path)
    if learning.nfes:
        raise ValueError(f"learn.init: a curve starts at a hand-made grid, got {path}")
    if (learned.method.nfe, learned.method.n_steps) != (student.nfe, student.n_steps):
        raise ValueError(
            f"learn.init: {path} is for {learned.method.nfe} network calls, the student makes {student.nfe}"
        )
    if learned.coefficients and learned.method != student:
        raise ValueError(f"learn.init: {path} has coefficients for {learned.method!r}, the student is {student!r}")
    return learned


def _method(config: config_dict.ConfigDict) -> Method:
    return Method(config.name, config.nfe, config.order, config.variant, config.lower_order_final)
