"""What the benchmark measures. A table is a function of `quick` to the names of its rows and how to measure each.

Means and medians are over the squared errors of 200 held-out noises, then medians over three seeds of the pairs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import coefficients, curve, galaxy, hsc32, lsst60
from experiments import comparison, models
from experiments.plan import Plan
from ld3_jax import learning
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, GradientDescent, Learned, LevenbergMarquardt, Student, on_grid
from ld3_jax.networks import edm, weights
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, draw_noise

_CONFIGS = {"hsc32": hsc32, "quasar72": galaxy, "lsst60": lsst60}
_SOLVERS = ("dpmpp", "unipc", "ipndm")

Row = dict[str, Any]
Measure = Callable[[], Row]


class Case(NamedTuple):
    """A student with its pairs, and how it learns."""

    student: Student
    known: Pairs
    held_out: Pairs
    plan: Plan


def what_table(quick: bool) -> list[tuple[str, Measure]]:
    """Squared error, mean (median): best hand-made grid, times and shifts learned, and the coefficients with them.

    On hsc32 everything is learned together as in configs/coefficients.py, elsewhere the coefficients after the times.
    """
    seeds = (0,) if quick else (0, 1, 2)
    surveys, solver_names, nfes = (("hsc32",), ("dpmpp",), (5,)) if quick else (_CONFIGS, _SOLVERS, (4, 5, 6, 8, 10))

    def measure(survey: str, solver: str, nfe: int) -> Row:
        rows = []
        for seed in seeds:
            config = configured(_CONFIGS[survey].get_config(), solver, nfe, seed)
            case = prepared(config)
            times = fitted(case)
            if survey == "hsc32":
                everything = fitted(prepared(coefficients.with_coefficients(config)))
            else:
                everything = fitted(case._replace(plan=Plan.of(coefficients.after_times(config))), times.found)
            rows.append(
                {
                    "best hand-made": best_hand_made(case),
                    "times, shifts": errors(case, times.found),
                    "and coefficients": errors(case, everything.found),
                }
            )
        return {name: np.median([row[name] for row in rows], 0).tolist() for name in rows[0]}

    return [
        (f"{survey} {solver} {nfe}", lambda case=(survey, solver, nfe): measure(*case))
        for survey in surveys
        for solver in solver_names
        for nfe in nfes
    ]


def curve_table(quick: bool) -> list[tuple[str, Measure]]:
    """One curve on hsc32, learned at 4, 6, 8 and 10 calls, beside times learned for one number of calls each."""
    solver_names, nfes = (("dpmpp",), (5,)) if quick else (_SOLVERS, (4, 5, 6, 7, 8, 9, 10, 12))

    def measure(solver: str) -> Row:
        case = prepared(configured(curve.get_config(), solver, 6, 0))
        learned, row = fitted(case), {}
        for nfe in nfes:
            own = prepared(configured(hsc32.get_config(), solver, nfe, 0))
            row[f"{nfe} best hand-made"], row[f"{nfe} own"] = best_hand_made(own), errors(own, fitted(own).found)
            row[f"{nfe} curve"] = errors(own, learned.for_calls(nfe, own.student.schedule).found)
        return row

    return [(solver, lambda solver=solver: measure(solver)) for solver in solver_names]


def learners_table(quick: bool) -> list[tuple[str, Measure]]:
    """Adam beside Levenberg-Marquardt with 3 steps of 25 pairs: hsc32, times and shifts; both compiled, in turn."""

    def measure(nfe: int) -> Row:
        adam = prepared(configured(hsc32.get_config(), "dpmpp", nfe, 0))
        learner = LevenbergMarquardt(steps=3, batch_size=25, validate_every=3)
        cases = {"adam": adam, "lm": adam._replace(plan=replace(adam.plan, learner=learner))}
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        found = {name: fitted(case).found for name, case in cases.items()}
        for _ in range(1 if quick else 3):
            for name, case in cases.items():
                begun = time.monotonic()
                fitted(case)
                seconds[name].append(time.monotonic() - begun)
        row: Row = {name: errors(case, found[name]) for name, case in cases.items()}
        return row | {"lm s / adam s": float(np.median(np.divide(seconds["lm"], seconds["adam"])))}

    return [(f"hsc32 dpmpp {nfe}", lambda nfe=nfe: measure(nfe)) for nfe in ((5,) if quick else (5, 10))]


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


TABLES = {"what": what_table, "curve": curve_table, "learners": learners_table, "network": network_table}


def read(path: Path) -> dict[str, Any]:
    """The rows measured so far.

    Raises:
        ValueError: if the file is damaged or no benchmark.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        sound = all(isinstance(row, dict) for row in record.get("rows", {}).values())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a benchmark, perhaps cut short ({error})") from error
    if not sound:
        raise ValueError(f"{path}: not a benchmark, its rows must be objects")
    return record


def configured(config: config_dict.ConfigDict, solver: str, nfe: int, seed: int) -> config_dict.ConfigDict:
    """A configuration with another solver and seed, and 200 held-out noises."""
    config.solver.name, config.solver.nfe, config.seed, config.data.test = solver, nfe, seed, 200
    return config


def prepared(config: config_dict.ConfigDict) -> Case:
    """What a configuration stands for."""
    plan, model = Plan.of(config), models.of_config(config)
    loss = comparison.loss_function(plan.loss)
    student = learning.make_student(model.model, model.schedule, plan.solver, loss)
    keys = jax.random.split(jax.random.key(config.seed), 2)
    counts = {"teacher": config.data.train + config.data.valid, "teacher, held-out noise": config.data.test}
    pairs = [
        models.teacher_pairs(label, model, plan.teacher, key, count)
        for key, (label, count) in zip(keys, counts.items(), strict=True)
    ]
    return Case(student, *pairs, plan)


def fitted(case: Case, start: str | Discretization = "best") -> Learned:
    """What is learned from the start."""
    plan = case.plan
    return learning.fit(
        case.student,
        case.known,
        jax.random.key(1),
        parametrisation=plan.parametrisation,
        learner=plan.learner,
        start=start,
    )


def best_hand_made(case: Case) -> list[float]:
    """Mean and median error of the best hand-made grid."""
    student = case.student
    return min(errors(case, on_grid(name, student.schedule, student.solver)) for name in GRIDS)


def errors(case: Case, found: Discretization) -> list[float]:
    """Mean and median squared error on the held-out noises."""
    student = case.student._replace(loss=comparison.loss_function("l2"))
    each = np.asarray(learning.distances(student, found, case.held_out))
    return [float(each.mean()), float(np.median(each))]


def _flops(model: Callable, x: jax.Array) -> float:
    """Floating-point operations of a network call, as the compiler counts them."""
    compiled = jax.jit(lambda model, x: model(x, jnp.float32(1.0), None)).lower(model, x).compile()
    return compiled.cost_analysis()["flops"]
