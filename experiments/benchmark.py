"""The README's tables, measured anew: what is learned, one curve, both learners, and the speed of a large network.

python -m experiments.benchmark --out=runs/benchmark.json

Every row is printed and saved once it is measured; rows that the file already holds are not measured again. Means and
medians are over the squared errors of 200 unseen noises, then medians over three seeds of the pairs.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_dict

from configs import coefficients, curve, galaxy, hsc32, lsst60
from experiments import common, comparison, models
from experiments.plan import Plan
from ld3_jax import checkpoint, metrics, optimizers, solvers, teacher, timesteps, train
from ld3_jax.learning import Discretization, Learning, discretization
from ld3_jax.metrics import Student
from ld3_jax.networks import edm, weights
from ld3_jax.steps import TrainState
from ld3_jax.teacher import Pairs

_OUT = flags.DEFINE_string("out", None, "A JSON file for the rows.")
_QUICK = flags.DEFINE_bool("quick", False, "One seed, few cases, a shrunken network: minutes in place of hours.")
_TABLES = flags.DEFINE_list("tables", ["what", "curve", "learners", "network"], "Which tables.")
flags.mark_flags_as_required(["out"])

_CONFIGS = {"hsc32": hsc32, "quasar72": galaxy, "lsst60": lsst60}
_SOLVERS = ("dpmpp", "unipc", "ipndm")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

Row = dict[str, Any]
Measure = Callable[[], Row]


class Case(NamedTuple):
    """A student with its pairs, and how it learns."""

    student: Student
    known: Pairs
    unseen: Pairs
    plan: Plan


def main() -> None:
    known = {"what": what_table, "curve": curve_table, "learners": learners_table, "network": network_table}
    if unknown := set(_TABLES.value) - set(known):
        raise ValueError(f"--tables takes some of {sorted(known)}, got {sorted(unknown)}")
    out = Path(_OUT.value)
    record = json.loads(out.read_text()) if out.exists() else {}
    record |= {"device": jax.devices()[0].device_kind, "python": platform.python_version()}
    record |= {"packages": {name: version(name) for name in _PACKAGES}}
    rows = record.setdefault("rows", {})
    print(", ".join([record["device"], *(f"{name} {number}" for name, number in record["packages"].items())]))
    for table in _TABLES.value:
        print(f"\n{table}: {known[table].__doc__}")
        for name, measure in known[table](_QUICK.value):
            key = f"{table}: {name}{' (quick)' if _QUICK.value else ''}"
            if key not in rows:
                rows[key] = measure()
                checkpoint.write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())
                jax.clear_caches()  # no row shares a program with another
            shown = (f"{column} {_figure(value)}" for column, value in rows[key].items())
            print(f"  {name:<24}" + "   ".join(shown), flush=True)


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
            state, learning = fitted(case)
            times = discretization(state.best, case.student, learning)
            if survey == "hsc32":
                everything = learned(prepared(coefficients.with_coefficients(config)))[0]
            else:
                everything = learned(case._replace(plan=Plan.of(coefficients.after_times(config))), times)[0]
            rows.append(
                {"by hand": by_hand(case), "times, shifts": errors(case, times), "and coefficients": everything}
            )
        return {name: median([row[name] for row in rows]) for name in rows[0]}

    return [
        (f"{survey} {solver} {nfe}", lambda case=(survey, solver, nfe): measure(*case))
        for survey in surveys
        for solver in solver_names
        for nfe in nfes
    ]


def curve_table(quick: bool) -> list[tuple[str, Measure]]:
    """One curve on hsc32, learned at 4, 6, 8 and 10 calls, beside schedules learned for one number of calls each."""
    solver_names, nfes = (("dpmpp",), (5,)) if quick else (_SOLVERS, (4, 5, 6, 7, 8, 9, 10, 12))

    def measure(solver: str) -> Row:
        config = configured(curve.get_config(), solver, 6, 0)
        case = prepared(config)
        state, learning = fitted(case)
        row = {}
        for nfe in nfes:
            own = prepared(configured(hsc32.get_config(), solver, nfe, 0))
            row[f"{nfe} by hand"], row[f"{nfe} own"] = by_hand(own), learned(own)[0]
            row[f"{nfe} curve"] = errors(own, discretization(state.best, own.student, learning))
        return row

    return [(solver, lambda solver=solver: measure(solver)) for solver in solver_names]


def learners_table(quick: bool) -> list[tuple[str, Measure]]:
    """Adam beside Levenberg-Marquardt with 3 steps of 25 pairs: hsc32, times and shifts; both compiled, in turn."""

    def measure(nfe: int) -> Row:
        config = configured(hsc32.get_config(), "dpmpp", nfe, 0)
        adam = prepared(config)
        learning = Learning(learner="lm", steps=3, batch_size=25, validate_every=3)
        second_order = adam._replace(
            plan=replace(adam.plan, learning=learning, optimizer=optimizers.levenberg_marquardt())
        )
        learned(adam), learned(second_order)
        runs = [(learned(adam), learned(second_order)) for _ in range(1 if quick else 3)]
        row = {"adam": runs[0][0][0], "lm": runs[0][1][0]}
        return row | {"lm s / adam s": float(np.median([lm[1] / adam[1] for adam, lm in runs]))}

    return [(f"hsc32 dpmpp {nfe}", lambda nfe=nfe: measure(nfe)) for nfe in ((5,) if quick else (5, 10))]


def network_table(quick: bool) -> list[tuple[str, Measure]]:
    """CIFAR-10's DDPM++ with random weights, UniPC-3 at 10 calls: 60 steps of 10 pairs. A gradient is 4 calls."""

    def measure(dtype: jnp.dtype) -> Row:
        network = edm.NETWORKS["cifar10"]
        network = edm.shrink(network) if quick else network
        model, schedule, shape = edm.from_random(network, dtype=dtype)
        x_T = schedule.prior_scale * teacher.draw_noise(jax.random.key(0), jnp.arange(20), shape)
        pairs = Pairs(x_T, jnp.zeros_like(x_T))
        student = metrics.make_student(model, schedule, solvers.Method("unipc", 10))
        learning = Learning(steps=2 if quick else 60, validate_every=1000)
        t = timesteps.grid("logsnr", schedule, 10)
        start = timesteps.to_params(t, t, schedule)
        seconds = []
        for _ in range(2):
            begun = time.monotonic()
            jax.block_until_ready(train.fit(student, pairs, pairs, jax.random.key(0), start=start, learning=learning))
            seconds.append(time.monotonic() - begun)
        calls = 4 * learning.steps * learning.batch_size * student.method.nfe
        per_call = _flops(model, x_T[: learning.batch_size]) / learning.batch_size
        return {
            "parameters": weights.count(edm.shapes(network)),
            "compilation s": seconds[0] - seconds[1],
            "learning s": seconds[1],
            "calls per s": calls / seconds[1],
            "TFLOP/s": calls / seconds[1] * per_call / 1e12,
        }

    dtypes = (jnp.float32,) if quick else (jnp.float32, jnp.bfloat16)
    return [(dtype.__name__, lambda dtype=dtype: measure(dtype)) for dtype in dtypes]


def configured(config: config_dict.ConfigDict, solver: str, nfe: int, seed: int) -> config_dict.ConfigDict:
    """A configuration with another solver and seed, and 200 unseen noises."""
    config.solver.name, config.solver.nfe, config.seed, config.data.test = solver, nfe, seed, 200
    return config


def prepared(config: config_dict.ConfigDict) -> Case:
    """What a configuration stands for."""
    plan = Plan.of(config)
    model = models.build(models.settings_of(config))
    student = metrics.make_student(model.noise, model.schedule, plan.student, comparison.loss_function(plan.loss))
    return Case(student, *models.make_data(model, config, plan, None), plan)


def fitted(case: Case, warm_start: Discretization | None = None) -> tuple[TrainState, Learning]:
    """The last state of learning from the warm start, or the best hand-made grid; and under which choices."""
    plan, key = case.plan, jax.random.key(1)
    grid = warm_start or train.rank_grids(case.student, case.known, plan.learning)[0][0]
    learning = replace(plan.learning, warped=grid) if plan.learning.nfes else plan.learning
    (start,) = train.starts(case.student, [grid], 1, key, learning)
    state = train.fit(
        case.student, case.known, case.known, key, start=start, optimizer=plan.optimizer, learning=learning
    )
    return jax.block_until_ready(state), learning


def learned(case: Case, warm_start: Discretization | None = None) -> tuple[list[float], float]:
    """Mean and median error of what is learned, and the seconds that it took."""
    begun = time.monotonic()
    state, learning = fitted(case, warm_start)
    seconds = time.monotonic() - begun
    return errors(case, discretization(state.best, case.student, learning)), seconds


def by_hand(case: Case) -> list[float]:
    """Mean and median error of the best hand-made grid."""
    found = []
    for name in timesteps.GRIDS:
        t = timesteps.grid(name, case.student.schedule, case.student.method.n_steps)
        found.append(errors(case, (t, t, None)))
    return min(found)


def errors(case: Case, found: Sequence) -> list[float]:
    """Mean and median squared error on the unseen noises."""
    student = case.student._replace(loss=comparison.loss_function("l2"))
    t, t_c, change = found
    each = np.asarray(metrics.distances(student, t, t_c, case.unseen, change))
    return [float(each.mean()), float(np.median(each))]


def median(rows: Sequence[Sequence[float]]) -> list[float]:
    """The medians of columns."""
    return np.median(np.asarray(rows), 0).tolist()


def _flops(model: Callable, x: jax.Array) -> float:
    """Floating-point operations of a network call, as the compiler counts them."""
    compiled = jax.jit(lambda model, x: model(x, jnp.float32(1.0), None)).lower(model, x).compile()
    return compiled.cost_analysis()["flops"]


def _figure(value: float | Sequence[float]) -> str:
    return f"{value:.4g}" if np.isscalar(value) else f"{value[0]:.5f} ({value[1]:.5f})"


if __name__ == "__main__":
    common.run(main)
