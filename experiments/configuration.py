"""Configurations: compared, checked, and read as values of the library, with errors that name the key."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from configs import default
from ld3_jax import grids, learning, losses
from ld3_jax.learning import Learned
from ld3_jax.learning.optimizers import RULES
from ld3_jax.learning.parametrisation import Parametrisation
from ld3_jax.learning.task import Learner
from ld3_jax.ranges import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, SEED, check, one_of
from ld3_jax.solvers import Solver

GROUPS = {"times": "logits", "shifts": "shifts", "coefficients": "coefficients"}  # learn.what -> a group of numbers
LEARNERS = ("gn", "lm", "optax")
_OF_LEARNERS = {  # keys that the other learners do not have
    ("gn",): ("ridge",),
    ("gn", "lm"): ("tangents",),
    ("optax",): (
        *(f"{group}_{what}" for group in GROUPS.values() for what in ("rule", "rate")),
        *("frozen_steps", "patience", "decay", "logits_floor", "shifts_floor", "floor_visits"),
        *("gamma", "noise_rate", "move_validation", "remat"),
    ),
}
# Values that no object of the library checks with the same meaning: rates are divided by n, and 0 is off.
_ALLOWED = {
    "seed": SEED,
    "data.train": COUNT,
    "data.valid": COUNT_OR_ZERO,
    "data.test": COUNT,
    "data.candidates": COUNT_OR_ZERO.or_none(),
    "learn.learner": one_of(LEARNERS),
    "learn.patience": COUNT_OR_ZERO,
    "learn.gamma": NOT_NEGATIVE,
    **{f"learn.{group}_rate": NOT_NEGATIVE.or_none() for group in GROUPS.values()},
    **{f"learn.{group}_rule": one_of(RULES) for group in GROUPS.values()},
}
KEYS = {  # names in the library's messages -> keys of learn
    **{"validations": "patience", "visits": "floor_visits", "rate": "noise_rate"},
    **{f"the floor of {group}": f"{group}_floor" for group in ("logits", "shifts")},
}


@contextmanager
def naming(
    section: str, known: Mapping[str, Any] | None = None, keys: Mapping[str, str] | None = None
) -> Iterator[None]:
    """An error of the library names the configuration's key, or else the section of the value.

    Args:
        section: the section of the configuration.
        known: the section's values.
        keys: name of a value in the library's messages -> its key, if they differ.
    """
    try:
        yield
    except ValueError as error:
        name, must, rest = str(error).partition(" must ")
        key = (keys or {}).get(name, name)
        said = f"{section}.{key}{must}{rest}" if must and key in (known or {}) else f"{section}: {error}"
        raise ValueError(said) from error


def flat(config: config_dict.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """A configuration's keys, joined by dots, and their values."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, config_dict.ConfigDict)
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Differences between two configurations, one per line. A key that an earlier version lacked has its default."""
    usual = json.loads(default.get_config().to_json())  # as a file has it: lists for tuples
    earlier = flat(config_dict.ConfigDict(usual)) | {"data.candidates": 0}  # before this key existed
    a, b = (earlier | flat(config_dict.ConfigDict(c)) for c in (config, other))
    same = [key for key in a | b if _of_today(key, a.get(key)) == _of_today(key, b.get(key))]
    return [f"{key}: {a.get(key)!r}, here {b.get(key)!r}" for key in sorted(a | b) if key not in same]


def _of_today(key: str, value: Any) -> Any:
    """A value in its current form: keys of earlier versions that changed nothing have none."""
    first = key.endswith(".variant") and value == "bh1"  # now None, the first variant
    return None if first or key == "learn.nfes" or (key, value) == ("learn.curve", False) else value


def check_run(config: config_dict.ConfigDict) -> None:
    """Refuse the configuration of a run for reasons that no value of the library checks.

    Raises:
        ValueError: it names the key, what was given and what is allowed.
    """
    usual = default.get_config()
    if missing := [key for key in usual if key not in config]:
        others = "a sweep's is for experiments.sweep, one of pre-training for experiments.pretrain"
        raise ValueError(f"not the configuration of a run: it lacks {missing}; {others}")
    values, optional = flat(config), flat(usual)
    if missing := [key for key, value in values.items() if value is None and optional.get(key) is not None]:
        raise ValueError(f"{', '.join(missing)} must have a value, got None")
    learn = config.learn
    for learners, keys in _OF_LEARNERS.items():
        changed = [f"learn.{key}" for key in keys if learn[key] != usual.learn[key]]
        if learn.learner in LEARNERS and learn.learner not in learners and changed:
            raise ValueError(
                f"{', '.join(changed)}: for {' and '.join(learners)} only, got learn.learner {learn.learner!r}"
            )
    times = grids.known()  # these and the losses are registered by now
    names = {"learn.loss": one_of(losses.LOSSES), "teacher.grid": one_of(times)}
    check(values, _ALLOWED | names | ({} if learn.init.endswith(".json") else {"learn.init": one_of([*times, "best"])}))
    if not learn.what or not set(learn.what) <= set(GROUPS):
        raise ValueError(f"learn.what must be some of {list(GROUPS)}, got {list(learn.what)}")
    if config.data.file and not config.solver.start:
        raise ValueError(f"data.file is what solver.start adds noise to, and there is none, got {config.data.file!r}")
    if config.data.candidates and (config.data.file or config.teacher.pairs):
        raise ValueError(
            "data.candidates are noises that are drawn, and data.file and teacher.pairs give states or pairs, "
            f"got {config.data.candidates}"
        )
    if config.teacher.pairs and config.solver.start:
        raise ValueError(f"teacher.pairs are of full noise, and solver.start is {config.solver.start!r}")
    if not config.teacher.cache:
        raise ValueError("teacher.cache must name a folder, got ''")
    if learn.batch_size > config.data.train:
        raise ValueError(f"learn.batch_size {learn.batch_size} exceeds data.train {config.data.train}")


def solver(of: config_dict.ConfigDict) -> Solver:
    """The solver that the section `solver` or `teacher` describes."""
    return Solver(of.name, of.nfe, of.order, of.variant, of.lower_order_final, of.last_sigma)


def start(init: str, solver: Solver) -> str | Learned:
    """What learning starts from: a grid's name, "best", or an earlier schedule for this solver."""
    if not init.endswith(".json"):
        return init
    if not Path(init).is_file():
        raise FileNotFoundError(f"learn.init: no file {init}; a run that learns the times writes one")
    learned = learning.load(init)
    if (learned.solver.nfe, learned.solver.n_steps) != (solver.nfe, solver.n_steps):
        raise ValueError(
            f"learn.init: {init} is for {learned.solver.nfe} network calls, the student makes {solver.nfe}"
        )
    if learned.coefficients is not None and learned.solver != solver:
        raise ValueError(f"learn.init: {init} has coefficients for {learned.solver!r}, the student is {solver!r}")
    return learned


def parametrisation(learn: config_dict.ConfigDict, start: str | Learned) -> Parametrisation:
    """The parametrisation; coefficients that are not learned keep their start."""
    frozen = tuple(group for what, group in GROUPS.items() if what not in learn.what)
    of_times = tuple(group for group in frozen if group != "coefficients")
    parametrisation = learning.Gaps(learn.space, learn.max_shift, of_times)
    if "coefficients" in learn.what or getattr(start, "coefficients", None) is not None:
        own = tuple(group for group in frozen if group == "coefficients")
        parametrisation = learning.WithCoefficients(parametrisation, learn.consistent, learn.history, own)
    return learning.ByPart(parametrisation) if learn.by_part else parametrisation


def learner(learn: config_dict.ConfigDict, held_out: int, parametrisation: Parametrisation, solver: Solver) -> Learner:
    """The learner."""
    groups = parametrisation.groups(solver)
    if not groups:
        raise ValueError(f"nothing is learned: {list(learn.what)} of {solver}")
    shared = {name: learn[name] for name in ("steps", "batch_size", "validate_every", "valid_batch")}
    shared["held_out"] = held_out
    if learn.learner == "gn":
        return learning.GaussNewton(ridge=learn.ridge, tangents=learn.tangents, **shared)
    if learn.learner == "lm":
        return learning.LevenbergMarquardt(tangents=learn.tangents, **shared)
    rules = {}
    for name, group in groups.items():
        given = learn[f"{name}_rate"]
        rules[name] = RULES[learn[f"{name}_rule"]](group.rate if given is None else given / solver.n_steps, learn.steps)
    floors = (("logits", learn.logits_floor), ("shifts", learn.shifts_floor), ("coefficients", learn.logits_floor))
    patience = learning.Patience(learn.patience, learn.decay, floors, learn.floor_visits) if learn.patience else None
    surrogate = learning.SoftSurrogate(learn.gamma, learn.noise_rate, learn.move_validation) if learn.gamma else None
    return learning.GradientDescent(
        optimizer=learning.by_group(rules),
        frozen_steps=learn.frozen_steps,
        patience=patience,
        surrogate=surrogate,
        remat=learn.remat,
        **shared,
    )
