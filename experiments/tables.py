"""The benchmark's tables: functions of `quick` that give the rows and how to measure them, on 200 held-out noises."""

import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import config_dict

from configs import default, docking, paper, times
from experiments.run import Run
from ld3_jax import interpolate, learning, metrics
from ld3_jax.comparison import SQUARED_ERROR
from ld3_jax.denoisers import Model
from ld3_jax.disk import numbers, read_json
from ld3_jax.learning import Discretization, GradientDescent, Learned
from ld3_jax.learning.interpolation import between
from ld3_jax.networks import edm, weights
from ld3_jax.poses import checks, molecules
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, draw_noise

Row = dict[str, Any]
Measure = Callable[[], Row]
_SWEPT = Path("results/schedules.zip")  # schedules that sweeps have learned
_SHOWN = {"times": "times", "everything": "times + coefficients"}  # schedules of a sweep, in the rows
_KNOWN = (4, 6, 8, 10)  # calls between which times are interpolated
_SCALES = (1.0, 1.5, 2.0)  # of guidance; 1 is none
_NFES, _TEST, _CHECKED = (6, 20, 4, 8, 10), 500, 25  # for docking; PoseBusters checks 25 poses, seconds each
_NETWORK = "ergotamine_network"  # the trained one
_MOLECULES = (_NETWORK, "1ia1", "1of6", "1s3v", "1uou")  # and crystals' own poses
_EULER = "DiffDock's steps"
_LEARNED = {
    "learned, one schedule": {"what": ("times", "shifts"), "by_part": False},
    "learned, three schedules": {"what": ("times", "shifts"), "by_part": True},
    "learned, times + coefficients": {"what": ("times", "shifts", "coefficients"), "by_part": True},
}
_DOCKED = (_EULER, "uniform", "best standard grid", *_LEARNED)


def interpolation_table(quick: bool) -> list[tuple[str, Measure]]:
    """Times learned for 4, 6, 8 and 10 calls, interpolated to others, and times learned for these; DPM-Solver++ 3M."""
    surveys, nfes = (("hsc32",), (5,)) if quick else (("hsc32", "ztf32", "quasar72"), (5, 7, 9, 12))

    def run_of(survey: str, nfe: int) -> Run:
        return Run.of(times.with_times_alone(configured(survey, "dpmpp", nfe))).check()

    @cache
    def learned(survey: str, nfe: int) -> Learned:
        return run_of(survey, nfe).learn()[0]

    def measure(survey: str, nfe: int) -> Row:
        run, known = run_of(survey, nfe), [learned(survey, one) for one in _KNOWN]
        interpolated = interpolate(known, nfe, run.model.schedule).discretization
        return _compared(run, {"interpolated": interpolated, "times": run.learn()[0].discretization})

    return [(f"{survey} {nfe}", partial(measure, survey, nfe)) for survey in surveys for nfe in nfes]


def learners_table(quick: bool) -> list[tuple[str, Measure]]:
    """Learners from the same start on hsc32, DPM-Solver++ 3M with 5 calls: error, and run time without compiling."""

    def measure(config: config_dict.ConfigDict) -> Row:
        run = Run.of(config).check()
        for _ in range(2):  # the second time nothing is compiled
            begun = time.monotonic()
            learned, ended = run.learn()
            seconds = time.monotonic() - begun
        return {"error": errors(run, learned.discretization), "s": seconds, "network calls": ended.network_calls}

    def of(**settings: Any) -> Measure:
        config = configured("hsc32", "dpmpp", 5)
        config.learn.update({"init": "quadratic"} | settings)
        return partial(measure, config)

    as_in_paper = paper.with_paper_settings(configured("hsc32", "dpmpp", 5))
    as_in_paper.learn.loss = "l2"
    rows = {
        "times, Gauss-Newton": of(what=("times", "shifts")),
        "times, Adam": of(what=("times", "shifts"), learner="optax", steps=60),
        "times + coefficients, Gauss-Newton": of(),
        "times + coefficients, Adam": of(learner="optax", steps=60),
        "times + coefficients, Levenberg-Marquardt": of(learner="lm", steps=6, batch_size=100),
        "the paper's settings": partial(measure, as_in_paper),
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


def transfer_table(quick: bool) -> list[tuple[str, Measure]]:
    """Schedules learned for DPM-Solver++ 3M with 5 calls, used elsewhere: on another network, with another solver, with
    times interpolated to another number of calls, at another guidance scale. Guidance leads from hsc32 to ztf32, eps =
    eps_hsc32 + scale (eps_ztf32 - eps_hsc32).
    """
    networks = ("hsc32",) if quick else ("hsc32", "ztf32", "quasar72")
    cells = []
    for network in networks:
        others = [other for other in networks if other != network]
        cells += [(what, network, other, "dpmpp", 5) for other in others for what in _SHOWN]
        cells += [("times", network, network, solver, 5) for solver in ("unipc", "ipndm")]
        cells += [("times", network, network, "dpmpp", nfe) for nfe in (4, 8)]

    def measure(what: str, origin: str, *there: Any) -> Row:
        run = Run.of(configured(*there)).check()
        given, learned = (_swept(what, *of) for of in ((origin, "dpmpp", 5), there))
        transferred = between([given], run.model.schedule, run.solver)
        return _compared(run, {"transferred": transferred, "learned there": learned})

    rows = [
        (f"{_SHOWN[what]} of {origin} dpmpp 5 on {' '.join(map(str, to))}", partial(measure, what, origin, *to))
        for what, origin, *to in cells
    ]
    return rows + ([] if quick else _between_scales())


def _swept(what: str, network: str, solver: str, nfe: int) -> Discretization:
    with zipfile.ZipFile(_SWEPT) as archive, tempfile.TemporaryDirectory() as folder:
        return learning.load(archive.extract(f"{network}-{solver}-{nfe}-0-{what}.json", folder)).discretization


def _between_scales() -> list[tuple[str, Measure]]:
    """Rows for ztf32 guided away from hsc32, as classifier-free guidance leads away from the unconditional model."""

    @cache
    def at(what: str, scale: float) -> tuple[Run, Discretization]:
        config = configured("ztf32", "dpmpp", 5)
        if what == "times":
            config = times.with_times_alone(config)
        model, other = (Run.of(configured(name, "dpmpp", 5)).model for name in ("ztf32", "hsc32"))
        guided = replace(model, model=Partial(_away, model.model, other.model, scale))
        run = Run.of(config).sharing(model=guided).check()
        return run, run.learn()[0].discretization

    def measure(what: str, origin: float, scale: float) -> Row:
        run, there = at(what, scale)
        return _compared(run, {"transferred": at(what, origin)[1], "learned there": there})

    return [
        (f"{_SHOWN[what]} of guidance {origin:g} on guidance {scale:g}", partial(measure, what, origin, scale))
        for origin, scale in permutations(_SCALES, 2)
        for what in _SHOWN
    ]


def _away(model: Model, other: Model, scale: float, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    start = other(x, t, cond)
    return start + scale * (model(x, t, cond) - start)


def docking_table(quick: bool) -> list[tuple[str, Measure]]:
    """Poses of ergotamine, then of others, against a converged teacher, 500 noises: angstrom, 95 % intervals."""

    def measure(nfe: int, name: str, model: str = "ergotamine") -> Row:
        config = docking.get_config()
        config.network.name, config.solver.nfe, config.data.test = model, nfe, _TEST
        config.learn.update(_LEARNED.get(name, {}))
        if model == _NETWORK:  # its calls take a hundred times as long
            config.data.train, config.learn.batch_size, config.learn.steps = 400, 40, 32
        if name == _EULER:
            config.solver.name, config.solver.order = "euler", 1
        run = Run.of(config).check()
        return _docked(run, _times_of_poses(run, name), model.removesuffix("_network"))

    rows = [(f"{nfe} {name}", partial(measure, nfe, name)) for nfe in _NFES for name in _DOCKED]
    rows += [(f"6 {name}, {model}", partial(measure, 6, name, model)) for model in _MOLECULES for name in _DOCKED]
    return rows[: 1 if quick else None]


def _times_of_poses(run: Run, name: str) -> Discretization:
    """A standard grid, or the learned times."""
    if name in _LEARNED:
        return run.learn()[0].discretization
    grids = run.judge.standard_grids()
    if name != "best standard grid":
        return grids["uniform"]
    return min(grids.values(), key=lambda one: float(learning.distances(run.student, one, run.pairs[0]).mean()))


def _docked(run: Run, times: Discretization, molecule: str) -> Row:
    """Distances to the teacher's poses, and the share of poses that pass PoseBusters' checks."""
    judged = run.judge(times, _CHECKED)
    rmsd = np.sqrt(judged.errors[SQUARED_ERROR])
    shares = {
        "under 0.5": metrics.share(rmsd < 0.5),
        "under 2": metrics.share(rmsd < 2.0),
        "passes checks": metrics.share(checks.passes(molecules.load(molecule), judged.samples)),
    }
    shown = {"median RMSD": "{:.4f} ({:.4f}-{:.4f})".format(*checks.median(rmsd))}
    shown |= {name: "{:.3f} ({:.3f}-{:.3f})".format(*share) for name, share in shares.items()}
    return {"mean square": float(np.mean(rmsd**2)), **shown}


def configured(network: str, solver: str, nfe: int) -> config_dict.ConfigDict:
    """The default configuration with a network and a solver, and 200 held-out noises."""
    config = default.get_config()
    config.network.name, config.solver.name, config.solver.nfe = network, solver, nfe
    config.data.test = 200
    return config


def errors(run: Run, times: Discretization) -> list[float]:
    """Mean and median squared error on the held-out noises, and the share of samples that end in another basin."""
    return list(run.judge(times).summary().values())


def _compared(run: Run, rows: dict[str, Discretization]) -> Row:
    """The errors of the standard grid with the lowest mean, and of others by name."""
    best = min(errors(run, one) for one in run.judge.standard_grids().values())
    return {"best standard grid": best} | {name: errors(run, one) for name, one in rows.items()}


def read(path: Path) -> dict[str, Any]:
    """The rows measured so far.

    Raises:
        ValueError: if the file is damaged or not a benchmark.
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


def markdown(record: dict[str, Any], tables: Mapping[str, Callable]) -> str:
    """The rows as Markdown, a section for each table."""
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    lines = [f"Measured on {record['device']} with {packages}. Errors are mean (median) and share in another basin."]
    for table, rows_of in tables.items():
        rows = {key: row for key, row in record["rows"].items() if key.startswith(f"{table}: ")}
        if not rows:
            continue
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += ["", f"## {table}", "", " ".join(rows_of.__doc__.split()), ""]
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for key, row in rows.items():
            cells = (shown(row[column]) if column in row else "" for column in columns)
            lines.append(f"| {key.removeprefix(f'{table}: ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float | str | Sequence[float]) -> str:
    """A word, a number, or mean (median) and the share in another basin."""
    if isinstance(value, str):
        return value
    if np.isscalar(value):
        return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
    return f"{value[0]:.5f} ({value[1]:.5f}) {value[2]:.1%}"


def _flops(model: Callable, x: jax.Array) -> float:
    """Floating-point operations of a network call, as the compiler counts them."""
    compiled = jax.jit(lambda model, x: model(x, jnp.float32(1.0), None)).lower(model, x).compile()
    return compiled.cost_analysis()["flops"]
