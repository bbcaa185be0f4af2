"""What the benchmark measures. A table is a function of `quick` to the names of its rows and how to measure each.

Means and medians are over the squared errors of 200 held-out noises.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import curve, default, paper, times
from experiments import comparison, models
from experiments.plan import Plan
from ld3_jax import learning
from ld3_jax.batches import to_host
from ld3_jax.disk import numbers, read_json
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Ended, GradientDescent, Learned, Student, on_grid
from ld3_jax.networks import edm, weights
from ld3_jax.pretrained import Pretrained
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, draw_noise

Row = dict[str, Any]
Measure = Callable[[], Row]


class Case(NamedTuple):
    """A student with its pairs, how it learns, and how it is judged."""

    student: Student
    known: Pairs
    held_out: Pairs
    plan: Plan
    seed: int
    model: Pretrained


def curve_table(quick: bool) -> list[tuple[str, Measure]]:
    """Times learned for 4, 6, 8 and 10 calls together, others read off, and those for one number; DPM-Solver++ 3M."""
    surveys, nfes = (("hsc32",), (5,)) if quick else (("hsc32", "ztf32", "quasar72"), (4, 5, 6, 7, 8, 9, 10, 12))

    @cache
    def learned(survey: str) -> Learned:
        return fitted(prepared(curve.with_curve(configured(survey, "dpmpp", 6, 0))))[0]

    def measure(survey: str, nfe: int) -> Row:
        case = prepared(times.with_times_alone(configured(survey, "dpmpp", nfe, 0)))
        return {
            "hand-made": best_hand_made(case),
            "curve": errors(case, learned(survey).for_calls(nfe, case.student.schedule).found),
            "times": errors(case, fitted(case)[0].found),
        }

    return [(f"{survey} {nfe}", partial(measure, survey, nfe)) for survey in surveys for nfe in nfes]


def learners_table(quick: bool) -> list[tuple[str, Measure]]:
    """Learners from the same start on hsc32, DPM-Solver++ 3M with 5 calls: run time of each, compiled, and error."""
    case = partial(configured, "hsc32", "dpmpp", 5, 0)

    def of_plan(**settings: Any) -> Row:
        config = case()
        config.learn.init = "quadratic"
        config.learn.update(settings)
        return measured_twice(prepared(config))

    def of_paper() -> Row:
        config = paper.with_paper_settings(case())
        config.learn.loss = "l2"
        return measured_twice(prepared(config))

    rows = {
        "times, Gauss-Newton": partial(of_plan, what=("times", "shifts")),
        "times, Adam": partial(of_plan, what=("times", "shifts"), learner="optax", steps=60),
        "everything, Gauss-Newton": of_plan,
        "everything, Adam": partial(of_plan, learner="optax", steps=60),
        "everything, Levenberg-Marquardt": partial(of_plan, learner="lm", steps=6, batch_size=100),
        "the paper's settings": of_paper,
    }
    return list(rows.items())[: 1 if quick else None]


def network_table(quick: bool) -> list[tuple[str, Measure]]:
    """CIFAR-10's DDPM++ with random weights, UniPC-3 at 10 calls: 60 steps of 10 pairs. A gradient is 4 calls."""

    def measure(dtype: jnp.dtype) -> Row:
        network = edm.shrink(edm.NETWORKS["cifar10"]) if quick else edm.NETWORKS["cifar10"]
        model, schedule, shape = edm.from_random(network, dtype=dtype)
        x_T = schedule.prior_scale * draw_noise(jax.random.key(0), 20, shape)
        learner = GradientDescent(steps=2 if quick else 60, validate_every=1000)
        student = learning.make_student(model, schedule, Solver("unipc", 10))
        seconds = []
        for _ in range(2):
            begun = time.monotonic()
            pairs = Pairs(x_T, jnp.zeros_like(x_T))
            learning.fit(student, pairs, jax.random.key(0), learner=learner, start="logsnr")
            seconds.append(time.monotonic() - begun)
        calls = 4 * learner.steps * learner.batch_size * student.solver.nfe
        per_call = _flops(model, x_T[: learner.batch_size]) / learner.batch_size
        return {
            "parameters": weights.count(edm.shapes(network)),
            "compilation s": seconds[0] - seconds[1],
            "learning s": seconds[1],
            "calls per s": calls / seconds[1],
            "TFLOP/s": calls / seconds[1] * per_call / 1e12,
        }

    dtypes = (jnp.float32,) if quick else (jnp.float32, jnp.bfloat16)
    return [(dtype.__name__, lambda dtype=dtype: measure(dtype)) for dtype in dtypes]


TABLES = {"curve": curve_table, "learners": learners_table, "network": network_table}


def read(path: Path) -> dict[str, Any]:
    """The rows measured so far.

    Raises:
        ValueError: if the file is damaged or no benchmark.
    """
    if not path.exists():
        return {}
    record = read_json(path)
    rows = record.get("rows", {}) if isinstance(record, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) and _is_row(row) for row in rows.values()):
        raise ValueError(f"{path}: not a benchmark; its rows have words, numbers and lists of three numbers")
    return record


def _is_row(row: Row) -> bool:
    """Whether a row holds words, numbers, and lists of a mean, a median and a share."""
    return all(isinstance(value, str | float | int) or numbers(value).shape == (3,) for value in row.values())


def configured(survey: str, solver: str, nfe: int, seed: int) -> config_dict.ConfigDict:
    """The default configuration with a network, a solver and a seed, and 200 held-out noises."""
    config = default.get_config()
    config.network.name, config.solver.name, config.solver.nfe = survey, solver, nfe
    config.seed, config.data.test = seed, 200
    return config


def prepared(config: config_dict.ConfigDict, model: Pretrained | None = None) -> Case:
    """What a configuration stands for, of its own model or another one."""
    plan, model = Plan.of(config), model or models.of_config(config)
    plan.start(model.schedule)  # refuses what does not fit before the teacher runs
    measures = comparison.load_measures(plan.loss, model)
    known, held_out = models.known_and_held_out(config, plan.teacher, model)
    loss = comparison.loss_function(plan.loss, known.x_0, measures)
    student = learning.make_student(model.model, model.schedule, plan.solver, loss, model.decode)
    return Case(student, known, held_out, plan, config.seed, model)


def fitted(case: Case) -> tuple[Learned, Ended]:
    """What is learned, and how learning ended."""
    key = jax.random.fold_in(jax.random.key(case.seed), 1)
    task = learning.make_task(case.student, case.known, key, case.plan.parametrisation, case.plan.learner)
    ended = learning.learn(task, case.plan.start(case.student.schedule))
    return replace(learning.describe(task, ended.state), model=case.model.identity()), ended


def measured_twice(case: Case) -> Row:
    """The error, and the run time of a second time, in which nothing is compiled."""
    for _ in range(2):
        begun = time.monotonic()
        learned, ended = fitted(case)
        seconds = time.monotonic() - begun
    return {"error": errors(case, learned.found), "s": seconds, "network calls": ended.network_calls}


def best_hand_made(case: Case) -> list[float]:
    """The errors of the hand-made grid with the least mean."""
    student = case.student
    return min(errors(case, on_grid(name, student.schedule, student.solver)) for name in GRIDS)


def errors(case: Case, found: Discretization) -> list[float]:
    """Mean and median squared error on the held-out noises, and the share that ends in another basin."""
    each = squared_errors(case, found)
    astray = comparison.in_another_basin(each, case.held_out.x_0, case.model.squared_error)
    return [float(each.mean()), float(np.median(each)), astray]


def squared_errors(case: Case, found: Discretization) -> np.ndarray:
    """That of each held-out noise."""
    student, size = case.student._replace(loss=case.model.squared_error), case.plan.learner.valid_batch
    return to_host(learning.distances(student, found, case.held_out, batch_size=size))


def _flops(model: Callable, x: jax.Array) -> float:
    """Floating-point operations of a network call, as the compiler counts them."""
    compiled = jax.jit(lambda model, x: model(x, jnp.float32(1.0), None)).lower(model, x).compile()
    return compiled.cost_analysis()["flops"]
