"""Ranges: a number out of its range is refused by its name, with what is allowed."""

import copy
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import baselines, batches, denoisers, grids, learning, ranges, schedules
from ld3_jax.learning import GaussNewton
from ld3_jax.solvers import Solver, integrate, make_table, solve
from ld3_jax.teacher import Pairs, Teacher, make_pairs


@pytest.mark.parametrize(
    ("allowed", "values"),
    [
        (ranges.COUNT, [1, np.int64(7), jnp.int32(7), np.array(7), 2**31 - 1]),
        (ranges.COUNT_OR_ZERO, [0]),
        (ranges.COUNT.or_none(), [None, 3]),
        (ranges.SEED, [0, 2**32 - 1]),
        (ranges.POSITIVE, [1e-30, 5, np.float32(2), jnp.bfloat16(2), jnp.int32(2)]),
        (ranges.NOT_NEGATIVE, [0, 1e30]),
        (ranges.UP_TO_ONE, [1, 0.5]),
        (ranges.SHARE, [0, 1.0]),
        (ranges.LESS_THAN_ONE, [0, 0.999]),
        (ranges.SHIFT, [0.0, 0.5]),
    ],
)
def test_what_is_allowed_is_taken(allowed, values):
    given = {f"n[{i}]": value for i, value in enumerate(values)}
    assert [allowed.lacks(value) for value in values] == [""] * len(values)
    assert ranges.check(given, dict.fromkeys(given, allowed)) == given


@pytest.mark.parametrize(
    ("allowed", "value", "message"),
    [
        (ranges.COUNT, 0, "n must be at least 1, got 0"),
        (ranges.COUNT, 2**31, "n must be at most 2147483647, got 2147483648"),
        (ranges.COUNT, 2.0, "n must be a whole number, got 2.0"),
        (ranges.COUNT, True, "n must be a whole number, got True"),
        (ranges.COUNT, None, "n must be a whole number, got None"),
        (ranges.COUNT.or_none(), 0, "n must be at least 1, got 0"),
        (ranges.SEED, -1, "n must be at least 0, got -1"),
        (ranges.POSITIVE, 0.0, "n must be greater than 0, got 0.0"),
        (ranges.POSITIVE, math.inf, "n must be finite, got inf"),
        (ranges.POSITIVE, math.nan, "n must be a number, got nan"),
        (ranges.POSITIVE, "1", "n must be a number, got '1'"),
        (ranges.NOT_NEGATIVE, -0.5, "n must be at least 0, got -0.5"),
        (ranges.LESS_THAN_ONE, 1.0, "n must be less than 1, got 1.0"),
        (ranges.SHARE, 1.5, "n must be at most 1, got 1.5"),
        (ranges.SHIFT, 5.0, "n must be at most 0.5, got 5.0"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(allowed, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ranges.check({"n": value}, {"n": allowed})


def test_numbers_of_numpy_and_jax_become_those_of_python():
    solver = Solver("dpmpp", 5, 2, last_sigma=0.0)
    for name, value in {"nfe": np.int64(5), "order": jnp.int32(2), "last_sigma": np.float32(0)}.items():
        object.__setattr__(solver, name, value)
    solver.__post_init__()
    assert json.loads(json.dumps(dataclasses.asdict(solver)))["nfe"] == 5
    assert solver == Solver("dpmpp", 5, 2, last_sigma=0.0)
    assert len(grids.grid("logsnr", VP, jnp.int32(5))) == 6


VP, KEY, X = schedules.VPLinear(), jax.random.key(0), jnp.ones((4, 2))
SOLVER = Solver("dpmpp", 4)
STUDENT = learning.make_student(jax.tree_util.Partial(lambda x, t, cond: x), VP, SOLVER)
PAIRS, ON_GRID = Pairs(X, X), learning.on_grid("logsnr", VP, SOLVER)
TABLE, GAPS, GN = ON_GRID.table(VP, SOLVER), learning.Gaps(), GaussNewton(batch_size=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: integrate(STUDENT.model, VP, SOLVER, TABLE, X.astype(complex)),
            "x_T must be arrays of real .* 'complex64",
        ),
        (
            lambda: integrate(STUDENT.model, VP, SOLVER, TABLE, X.astype(int)),
            r"x_T must be arrays of real .* 'int32\[4, 2\]'",
        ),
        (
            lambda: integrate(STUDENT.model, VP, SOLVER, TABLE, {"a": X, "b": "noise"}),
            "x_T must be arrays of real .* 'noise'",
        ),
        (lambda: integrate(STUDENT.model, VP, SOLVER, TABLE, X, cond=["a cat"]), "cond must be arrays .*'a cat'"),
        (lambda: make_table.__wrapped__("vp", ON_GRID.t), "schedule must be of type NoiseSchedule, got 'vp'"),
        (lambda: solve(None, TABLE, X), "model must be a function, got None"),
        (
            lambda: solve(STUDENT.model, TABLE, X, remat="no"),
            "remat must be True or False, got 'no'",
        ),
        (lambda: make_pairs(STUDENT.model, VP, X.astype(complex)), "x_T must be arrays of real .* 'complex64"),
        (lambda: make_pairs(STUDENT.model, VP, X, teacher="unipc"), "teacher must be of type Teacher, got 'unipc'"),
        (lambda: denoisers.to_noise(STUDENT.model, VP, ["v"]), r"prediction must be one of \[.*'v'\], got \['v'\]"),
        (lambda: learning.make_student(STUDENT.model, VP, "dpmpp"), "solver must be of type Solver, got 'dpmpp'"),
        (lambda: learning.make_task(STUDENT, PAIRS, 1, GAPS, GN), "key must be a key of jax.random, got 1"),
        (lambda: learning.make_task(STUDENT, (X, X), KEY, GAPS, GN), "pairs must be of type Pairs"),
        (lambda: learning.make_task(STUDENT, PAIRS, KEY, GAPS, "gn"), r"learner must be of type Learner, .* got 'gn'"),
        (
            lambda: learning.make_task(STUDENT, PAIRS, KEY, GAPS, GaussNewton),
            r"learner must be of type Learner, .* got <class",
        ),
        (lambda: learning.make_task(STUDENT, PAIRS, KEY, None, GN), r"must be of type Parametrisation, .* got None"),
        (lambda: learning.make_task(STUDENT, Pairs(X, X.astype(int)), KEY, GAPS, GN), "x_0 must be arrays of real"),
        (lambda: learning.distances(STUDENT, ON_GRID, PAIRS, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: learning.distances(STUDENT, ON_GRID, Pairs(X, X[:3])), "pairs must share their leading axis"),
        (lambda: learning.begin(None, "logsnr"), "task must be of type Task, got None"),
        (lambda: learning.kl_bound(STUDENT, ON_GRID, teacher="t", x_T=X), "teacher must be of type Teacher, got 't'"),
        (lambda: grids.grid("logsnr", VP, True), "n must be a whole number, got True"),
        (lambda: grids.grid("logsnr", VP, 10**9), "n must be at most 10000, got 1000000000"),
        (
            lambda: baselines.baseline("gits", VP, 3, STUDENT.model),
            r"probe must be of type Probe, or None, got .*Partial",
        ),
        (lambda: jax.jit(batches.finite)(X), "outside jit: their values are checked"),
        (lambda: batches.equal_batches(5, 0), "batch_size must be at least 1, got 0"),
        (lambda: Solver("dpmpp", 10**9), "nfe must be at most 10000, got 1000000000"),
        (lambda: Solver("heun").for_steps(10**9), "n must be at most 10000"),
        (
            lambda: learning.WithCoefficients(history=5).init(ON_GRID, VP, SOLVER),
            "history must be at most 4, got 5",
        ),
        (
            lambda: learning.WithCoefficients(learning.WithCoefficients()).init(ON_GRID, VP, SOLVER),
            "times must be a parametrisation without coefficients",
        ),
    ],
)
def test_other_kinds_are_refused_at_the_entrance(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "name", "value", "message"),
    [
        (Teacher(), "drop_not_finite", "no", "must be True or False, got 'no'"),
        (Teacher(), "cache", 3, "must be a path, or None, got 3"),
        (learning.GradientDescent(), "remat", 1, "must be True or False, got 1"),
        (learning.GradientDescent(), "optimizer", 1e-3, "must be of type Optimizer, or None, got 0.001"),
        (learning.SoftSurrogate(), "move_validation", "no", "must be True or False, got 'no'"),
        (learning.Patience(), "floors", (("logits",),), "a tuple of a group and its floor"),
        (learning.WithCoefficients(), "consistent", "no", "must be True or False, got 'no'"),
        (learning.ByPart(), "each", None, "must be of type Parametrisation, got None"),
        (learning.Gaps(), "space", ["t"], r"must be one of \['lambda', 't'\], got \['t'\]"),
        (GaussNewton(), "steps", "3", "must be a whole number, got '3'"),
        (VP, "beta_0", True, "must be a number, got True"),
        (schedules.VELinear(), "sigma_min", 1j, "must be a number, got 1j"),
    ],
)
def test_other_kinds_are_refused_when_a_record_is_built(record, name, value, message):
    record = copy.copy(record)  # the run-time type checks of the test suite would see the value first
    object.__setattr__(record, name, value)
    with pytest.raises(ValueError, match=message):
        record.__post_init__()


def test_tracers_pass_as_numbers():
    assert jax.jit(lambda scale: ranges.check({"scale": scale}, {"scale": ranges.POSITIVE})["scale"])(2.0) == 2
