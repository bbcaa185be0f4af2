"""A configuration as values of the library, checked before anything is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ml_collections import config_dict

from configs import default
from experiments import common
from ld3_jax import grids, learning, losses
from ld3_jax.learning import Discretization, Learned, Task
from ld3_jax.learning.optimizers import RULES
from ld3_jax.learning.parametrisation import Parametrisation
from ld3_jax.learning.task import Learner
from ld3_jax.published import PUBLISHED
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SEED, SHARE, SHIFT, UP_TO_ONE, check, one_of
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

WHAT = {"times": "logits", "shifts": "shifts", "coefficients": "coefficients"}
LEARNERS = ("gn", "lm", "optax")
_OF_LEARNERS = {  # keys that the other learners do not have
    ("gn",): ("ridge",),
    ("gn", "lm"): ("tangents",),
    ("optax",): (
        *(f"{group}_{what}" for group in WHAT.values() for what in ("rule", "rate")),
        *("frozen_steps", "patience", "decay", "logits_floor", "shifts_floor", "floor_visits"),
        *("gamma", "noise_rate", "move_validation", "remat"),
    ),
}
# Of all numbers, and of names, that are no part of a `Solver` or of `pretrained.Settings`.
RANGES = {
    "seed": SEED,
    "teacher.batch_size": COUNT,
    "data.train": COUNT,
    "data.valid": COUNT_OR_ZERO,
    "data.test": COUNT,
    "learn.history": COUNT.or_none(),
    "learn.tangents": COUNT,
    "learn.ridge": NOT_NEGATIVE,
    **{f"learn.{key}": COUNT for key in ("steps", "batch_size", "validate_every", "valid_batch")},
    **{f"learn.{group}_rate": NOT_NEGATIVE.or_none() for group in WHAT.values()},
    **{f"learn.{group}_rule": one_of(RULES) for group in WHAT.values()},
    "learn.max_shift": SHIFT,
    "learn.frozen_steps": COUNT_OR_ZERO,
    "learn.patience": COUNT_OR_ZERO,
    "learn.decay": UP_TO_ONE,
    "learn.logits_floor": SHARE,
    "learn.shifts_floor": SHARE,
    "learn.floor_visits": COUNT,
    "learn.gamma": NOT_NEGATIVE,
    "learn.noise_rate": POSITIVE,
    "learn.learner": one_of(LEARNERS),
    "teacher.grid": one_of([*grids.GRIDS, *PUBLISHED]),
}
_OPTIONAL = {
    *(f"{of}.{key}" for of in ("solver", "teacher") for key in ("order", "variant", "last_sigma")),
    "teacher.pairs",
    *(key for key, allowed in RANGES.items() if not allowed.lacks(None)),
}


@dataclass(frozen=True)
class Plan:
    """What a configuration says, as values.

    Attributes:
        solver: the student's.
        teacher: how the pairs are made.
        parametrisation: what is learned.
        learner: how.
        loss: the name of the loss.
        init: the start: a grid's name, "race", or what was learned before.
    """

    solver: Solver
    teacher: Teacher
    parametrisation: Parametrisation
    learner: Learner
    loss: str
    init: str | Learned

    @classmethod
    def of(cls, config: config_dict.ConfigDict) -> "Plan":
        """Read a configuration.

        Raises:
            ValueError: if a value is not one that exists; it names the key, what was given and what is allowed.
            FileNotFoundError: if learn.init names a file that does not exist.
        """
        _check(config)
        with _of("solver"):
            solver = _solver(config.solver)
        learn = config.learn
        init = _load(Path(learn.init)) if learn.init.endswith(".json") else learn.init
        warm = isinstance(init, Learned)
        if warm:
            _check_start(init, solver, learn)
        with _of("learn"):
            parametrisation = _parametrisation(learn, warm and init.coefficients is not None)
            if not parametrisation.groups(solver):
                raise ValueError(f"nothing is learned: {list(learn.what)} of {solver}")
            learner = _learner(config, parametrisation, solver)
        with _of("teacher"):
            teacher = _teacher(config.teacher, config.network.name)
        return cls(solver, teacher, parametrisation, learner, learn.loss, init)

    def start(self, schedule: NoiseSchedule) -> str | Discretization:
        """Where to start, as `learning.learn` takes it, once the model's noise schedule is known.

        Raises:
            ValueError: if solver, teacher, learner or start do not fit the noise schedule.
        """
        with _of("solver"):
            self.solver.takes(schedule)
        with _of("teacher"):
            self.teacher.solver.takes(schedule)
            grids.grid(self.teacher.grid, schedule, self.teacher.solver.n_steps)
        start = self.init.found if isinstance(self.init, Learned) else self.init
        with _of("learn.init"):
            if isinstance(self.init, Learned):
                self.init.check_range(schedule)
            first = "uniform" if start == "race" else start
            found = learning.on_grid(first, schedule, self.solver) if isinstance(first, str) else first
            self.parametrisation.init(found, schedule, self.solver)
        with _of("learn"):
            student = learning.make_student(lambda x, t, cond: x, schedule, self.solver, losses.l2)
            self.learner.check(Task(student, None, None, None, self.parametrisation, self.learner))
        return start


def _check(config: config_dict.ConfigDict) -> None:
    if missing := [key for key in default.get_config() if key not in config]:
        raise ValueError(f"not the configuration of a run: it lacks {missing}; a sweep's is for experiments.sweep")
    values = common.flat(config)
    if missing := [key for key, value in values.items() if value is None and key not in _OPTIONAL]:
        raise ValueError(f"{', '.join(missing)} must have a value, got None")
    learn = config.learn
    known = losses.LOSSES
    names = {"learn.loss": one_of(known)}
    if not learn.init.endswith(".json"):
        names["learn.init"] = one_of([*grids.GRIDS, *PUBLISHED, "race"])
    check(values, RANGES | names)
    if not learn.what or not set(learn.what) <= set(WHAT):
        raise ValueError(f"learn.what must be some of {list(WHAT)}, got {list(learn.what)}")
    if not config.teacher.cache:
        raise ValueError("teacher.cache must name a folder, got ''")
    if learn.batch_size > config.data.train:
        raise ValueError(f"learn.batch_size {learn.batch_size} exceeds data.train {config.data.train}")
    if learn.curve and (learn.gamma or learn.by_part or "coefficients" in learn.what):
        raise ValueError("a curve needs learn.gamma 0, learn.by_part False, and no coefficients in learn.what")
    usual = default.get_config().learn
    for learners, keys in _OF_LEARNERS.items():
        changed = [f"learn.{key}" for key in keys if learn[key] != usual[key]]
        if learn.learner not in learners and changed:
            raise ValueError(
                f"{', '.join(changed)}: for {' and '.join(learners)} only, got learn.learner {learn.learner!r}"
            )


def _parametrisation(learn: config_dict.ConfigDict, coefficients: bool) -> Parametrisation:
    frozen = tuple(group for what, group in WHAT.items() if what not in learn.what)
    of_times = tuple(group for group in frozen if group != "coefficients")
    found = learning.Gaps(learn.space, learn.max_shift, of_times)
    if coefficients or "coefficients" not in frozen:
        own = tuple(group for group in frozen if group == "coefficients")
        found = learning.WithCoefficients(found, learn.consistent, learn.history, own)
    return learning.ByPart(found) if learn.by_part else found


def _learner(config: config_dict.ConfigDict, parametrisation: Parametrisation, solver: Solver) -> Learner:
    learn = config.learn
    common = {name: learn[name] for name in ("steps", "batch_size", "validate_every", "valid_batch")}
    common["held_out"] = config.data.valid
    if learn.learner != "optax":
        common["tangents"] = learn.tangents
        if learn.learner == "lm":
            return learning.LevenbergMarquardt(**common)
        return learning.GaussNewton(ridge=learn.ridge, **common)
    rules, n = {}, solver.n_steps
    for group, (usual, *_) in parametrisation.groups(solver).items():
        given = learn[f"{group}_rate"]
        rules[group] = RULES[learn[f"{group}_rule"]](usual if given is None else given / n, learn.steps)
    floors = (("logits", learn.logits_floor), ("shifts", learn.shifts_floor), ("coefficients", learn.logits_floor))
    patience = learning.Patience(learn.patience, learn.decay, floors, learn.floor_visits) if learn.patience else None
    surrogate = learning.SoftSurrogate(learn.gamma, learn.noise_rate, learn.move_validation) if learn.gamma else None
    return learning.GradientDescent(
        optimizer=learning.by_group(rules),
        frozen_steps=learn.frozen_steps,
        patience=patience,
        surrogate=surrogate,
        remat=learn.remat,
        **common,
    )


def _load(path: Path) -> Learned:
    if not path.is_file():
        raise FileNotFoundError(f"learn.init: no file {path}; a run that learns the times writes one")
    return learning.load(path)


def _check_start(start: Learned, solver: Solver, learn: config_dict.ConfigDict) -> None:
    """What was learned before serves this student."""
    if learn.curve:
        raise ValueError(f"learn.init: a curve starts at a hand-made grid, got {learn.init}")
    if (start.solver.nfe, start.solver.n_steps) != (solver.nfe, solver.n_steps):
        raise ValueError(
            f"learn.init: {learn.init} is for {start.solver.nfe} network calls, the student makes {solver.nfe}"
        )
    if start.coefficients is not None and start.solver != solver:
        raise ValueError(f"learn.init: {learn.init} has coefficients for {start.solver!r}, the student is {solver!r}")


def _teacher(config: config_dict.ConfigDict, identity: str) -> Teacher:
    solver, cache = _solver(config), Path(config.cache)
    return Teacher(solver, config.grid, config.batch_size, cache, identity, config.drop_not_finite)


@contextmanager
def _of(section: str) -> Iterator[None]:
    """An error names the section that the value is in."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def _solver(config: config_dict.ConfigDict) -> Solver:
    return Solver(config.name, config.nfe, config.order, config.variant, config.lower_order_final, config.last_sigma)
