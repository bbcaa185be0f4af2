"""A curve: its own times for each number of calls that is learned, and for others times between these."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.interpolate import PchipInterpolator

from ld3_jax import grids, learning, schedules, solvers
from ld3_jax.learning import (
    Coefficients,
    Curve,
    Discretization,
    Gaps,
    GradientDescent,
    SoftSurrogate,
    state,
)
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(1)
CURVE = Curve(nfes=(3, 6))
LEARNER = GradientDescent(steps=60, batch_size=20, valid_batch=60)


def solver_of(nfe, name="dpmpp"):
    return Solver(name, nfe, order=min(nfe, 2))


def numbers_of(curve, grid, nfe=5, name="dpmpp"):
    return curve.init(learning.on_grid(grid, SCHEDULE, solver_of(nfe, name)), SCHEDULE, solver_of(nfe, name))


def random_numbers(curve, size=1.0):
    flat, unravel = ravel_pytree(numbers_of(curve, "logsnr"))
    return curve.project(unravel(flat + size * jax.random.normal(KEY, flat.shape)), SCHEDULE)


@jax.jit
def read_off(curve, params, solver):
    return curve.discretization(params, SCHEDULE, solver)


def make_student(nfe):
    return learning.make_student(MODEL, SCHEDULE, solver_of(nfe))


@pytest.fixture(scope="module")
def pairs():
    x_T = jax.random.normal(jax.random.key(0), (120, 2))
    t = grids.grid("logsnr", SCHEDULE, 60)
    sample = jax.jit(lambda x_T: solvers.sample(MODEL, SCHEDULE, x_T, t, solver="unipc"))
    return Pairs(x_T, sample(x_T))


@pytest.mark.parametrize("grid", grids.GRIDS)
@pytest.mark.parametrize("name", ["dpmpp", "heun"])
def test_the_start_is_the_hand_made_grid_at_every_number_of_calls(grid, name, float64):
    curve = Curve((4, 6))
    start = numbers_of(curve, grid, name=name)
    for nfe in curve.nfes:
        solver = solver_of(nfe, name)
        t, t_c, _ = read_off(curve, start, solver)
        np.testing.assert_allclose(t, grids.grid(grid, SCHEDULE, solver.n_steps), rtol=1e-9)
        np.testing.assert_allclose(t_c, t, rtol=1e-9)


def test_a_number_of_calls_that_is_learned_has_its_own_times(float64):
    params = random_numbers(CURVE)
    for i, nfe in enumerate(CURVE.nfes):
        own = {name: group[i] for name, group in params.items()}
        expected = Gaps().discretization(own, SCHEDULE, solver_of(nfe))
        chex.assert_trees_all_close(read_off(CURVE, params, solver_of(nfe)), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 12, 50])
def test_any_numbers_give_descending_times_with_exact_ends(n):
    t, t_c, _ = read_off(CURVE, random_numbers(CURVE, 1.5), solver_of(n))
    assert len(t) == len(t_c) == n + 1
    for times in (t, t_c):
        assert (np.diff(times) < 0).all()
        assert (float(times[0]), float(times[-1])) == (np.float32(SCHEDULE.t_max), np.float32(SCHEDULE.t_min))
    assert n == 1 or np.abs(t - t_c).max() > 1e-3


def test_between_two_numbers_of_calls_the_times_are_those_of_scipys_interpolation(float64):
    params = random_numbers(CURVE)
    few, many = (np.asarray(SCHEDULE.lam(read_off(CURVE, params, solver_of(n)).t)) for n in (3, 6))
    at = [PchipInterpolator(np.arange(len(lam)) / (len(lam) - 1), lam)(np.arange(5) / 4) for lam in (few, many)]
    expected = (at[0] + at[1]) / 2  # 1 / 4 is half way between 1 / 3 and 1 / 6
    np.testing.assert_allclose(SCHEDULE.lam(read_off(CURVE, params, solver_of(4)).t), expected, rtol=1e-8)


@pytest.mark.parametrize(("n", "nearest"), [(2, 3), (12, 6)])
def test_beyond_the_learned_numbers_the_nearest_counts(n, nearest, float64):
    params = random_numbers(CURVE)
    lam, known = (np.asarray(SCHEDULE.lam(read_off(CURVE, params, solver_of(k)).t)) for k in (n, nearest))
    expected = PchipInterpolator(np.arange(nearest + 1) / nearest, known)(np.arange(n + 1) / n)
    np.testing.assert_allclose(lam, expected, rtol=1e-8)


@pytest.fixture(scope="module")
def learned(pairs):
    """A curve learned with 3 and 6 calls, and the numbers that it started from."""
    task = learning.make_task(make_student(5), jax.tree.map(lambda leaf: leaf[:60], pairs), KEY, CURVE, LEARNER)
    start = learning.rank(task)[0]
    ended = learning.learn(task, start.found)
    return learning.begin(task, start.found).params, ended.state, learning.describe(task, ended.state)


def test_one_curve_beats_the_hand_made_grids_where_it_was_learned_and_between(pairs, learned):
    _, last, found = learned
    unseen = jax.tree.map(lambda leaf: leaf[60:], pairs)
    assert last.best_loss < 0.7 * last.start_loss
    for nfe in (3, 4, 6):
        run_with = make_student(nfe)
        hand_made = [learning.on_grid(name, SCHEDULE, run_with.solver) for name in grids.GRIDS]
        errors = [learning.distances(run_with, grid, unseen, batch_size=60).mean() for grid in hand_made]
        assert found.for_calls(nfe, SCHEDULE).distances(run_with, unseen, batch_size=60).mean() < min(errors)


def test_each_number_of_calls_learns_and_its_shifts_keep_their_bound(learned):
    start, last, found = learned
    for i in range(len(CURVE.nfes)):
        was, now = ({name: group[i] for name, group in params.items()} for params in (start, last.params))
        assert np.abs(now["logits"] - was["logits"]).max() > 1e-2
        assert 0 < np.abs(now["shifts"]).max() <= Gaps().shift_bound(now, SCHEDULE) * (1 + 1e-6)
    chex.assert_trees_all_close(found.for_calls(6, SCHEDULE).found, found.curve[1], rtol=1e-6)


def test_the_loss_of_a_curve_is_the_geometric_mean_over_the_numbers_of_calls(pairs):
    rank = {
        nfes: {start.name: start.loss for start in learning.rank(task_of(nfes, pairs))} for nfes in ((3, 6), (3,), (6,))
    }
    for name, loss in rank[3, 6].items():
        np.testing.assert_allclose(loss, np.sqrt(rank[3,][name] * rank[6,][name]), rtol=1e-5)
    assert float(state.together([jnp.asarray(0.3)])) == np.float32(0.3)


def task_of(nfes, pairs):
    return learning.make_task(make_student(5), pairs, KEY, replace(CURVE, nfes=nfes), LEARNER)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (
            replace(LEARNER, surrogate=SoftSurrogate()),
            "the soft surrogate learns for the student's own number of network calls",
        ),
    ],
    ids=["soft surrogate"],
)
@pytest.mark.parametrize("nfes", [(3, 6), (4,)])
def test_what_a_curve_cannot_be_learned_with_is_refused(learner, message, nfes, pairs):
    with pytest.raises(ValueError, match=message):
        learning.fit(make_student(5), pairs, KEY, parametrisation=replace(CURVE, nfes=nfes), learner=learner)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"nfes": ()}, r"needs numbers of network calls to be learned for, got nfes = \(\)"),
        ({"nfes": (4, 0)}, r"nfes\[1\] must be at least 1, got 0"),
        ({"nfes": (6, 4)}, r"nfes must ascend, got \(6, 4\)"),
        ({"nfes": (4, 4)}, r"nfes must ascend, got \(4, 4\)"),
    ],
)
def test_a_bad_choice_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        Curve(**choice)


def test_a_start_that_is_no_hand_made_grid_is_refused(pairs):
    solver, t = solver_of(5), grids.grid("edm", SCHEDULE, 5)
    change = Coefficients(jnp.zeros(5), jnp.zeros((5, 5)))
    others = [
        (t.at[2].multiply(0.9),) * 2,
        (t, t.at[2].multiply(0.9)),
        (t, t, change),
        (grids.grid("edm", SCHEDULE, 6),) * 2,
    ]
    for start in others:
        with pytest.raises(
            ValueError, match=r"starts at a hand-made grid, one of \['edm', 'logsnr', 'quadratic', 'uni"
        ):
            CURVE.init(Discretization(*start), SCHEDULE, solver)
    with pytest.raises(ValueError, match=r"grid must be one of \[.*'edm', .*got 'even'"):
        learning.fit(make_student(5), pairs, KEY, parametrisation=CURVE, learner=LEARNER, start="even")
