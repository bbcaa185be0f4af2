"""One curve for every number of calls: it starts as the hand-made grid, stays a grid, and serves numbers unseen."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import grids, learning, schedules, solvers
from ld3_jax.learning import (
    Coefficients,
    Curve,
    Discretization,
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


def random_params(degree=16, size=1.0, grid="logsnr"):
    logits, shifts = (size * jax.random.normal(jax.random.key(i), (2, degree - i)) for i in (0, 1))
    return numbers_of(Curve(degree=degree), grid) | {"logits": logits, "shifts": shifts}


def solver_of(nfe):
    return Solver("dpmpp", nfe, order=min(nfe, 2))


def numbers_of(curve, grid, nfe=5):
    return curve.init(learning.on_grid(grid, SCHEDULE, solver_of(nfe)), SCHEDULE, solver_of(nfe))


def read_off(params, n):
    """The times for n steps, compiled once for each n and degree."""
    found = _read_off(Curve(degree=params["logits"].shape[1]), params, solver_of(n))
    return jax.device_get(found[:2])


@jax.jit
def _read_off(curve, params, solver):
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
@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_the_start_is_the_hand_made_grid(grid, n, float64):
    start = numbers_of(Curve(degree=16), grid)
    t, t_c = read_off(start, n)
    np.testing.assert_allclose(t, grids.grid(grid, SCHEDULE, n), rtol=1e-9)
    np.testing.assert_array_equal(t, t_c)
    expected = {"grid": list(grids.GRIDS).index(grid) == np.arange(4), "logits": np.zeros((2, 16))}
    chex.assert_trees_all_equal(start, expected | {"shifts": np.zeros((2, 15))})


@pytest.mark.parametrize("grid", grids.GRIDS)
def test_a_warp_moves_the_steps_of_its_own_grid(grid, float64):
    """With equal weights everywhere the warp is the identity; else it is the same u for every grid."""
    t, _ = read_off(random_params(grid=grid), 7)
    lam, _ = read_off(random_params(), 7)
    ends = SCHEDULE.lam(jnp.asarray([SCHEDULE.t_max, SCHEDULE.t_min]))
    u = (SCHEDULE.lam(jnp.asarray(lam)) - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(t, grids.GRIDS[grid](SCHEDULE, u), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [1, 5, 12, 50])
def test_any_parameters_give_descending_times_with_exact_ends(n):
    t, t_c = read_off(random_params(size=3.0), n)
    assert (np.diff(t) < 0).all()
    assert (np.diff(t_c) < 0).all()
    for times in (t, t_c):
        assert float(times[0]) == np.float32(SCHEDULE.t_max)
        assert float(times[-1]) == np.float32(SCHEDULE.t_min)
    assert n == 1 or np.abs(t - t_c).max() > 1e-3


def test_half_the_steps_are_every_other_point_of_the_whole_where_the_curve_does_not_bend(float64):
    bent = random_params()
    straight = bent | {name: bent[name].at[1].set(0.0) for name in ("logits", "shifts")}
    for params, same in ((straight, True), (bent, False)):
        fine, _ = read_off(params, 12)
        coarse, _ = read_off(params, 6)
        assert np.allclose(coarse, fine[::2], rtol=1e-12) == same


def test_the_gradient_equals_finite_differences(float64):
    params, direction = random_params(4, 0.1), random_params(4)

    @jax.jit
    def moved(epsilon):
        ways = {name: params[name] + epsilon * direction[name] for name in ("logits", "shifts")}
        return jnp.stack(Curve(degree=4).discretization(params | ways, SCHEDULE, solver_of(5))[:2])

    slope = jax.jit(jax.jacfwd(moved))(0.0)
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-9)


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


def test_the_grid_does_not_move_and_the_shifts_keep_their_bound(learned):
    start, last, _ = learned
    chex.assert_trees_all_equal(last.params["grid"], last.best["grid"], start["grid"])
    assert np.abs(last.params["logits"] - start["logits"]).max() > 1e-2
    assert 0 < np.abs(last.params["shifts"]).max() <= CURVE.max_shift


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
        ({"degree": 0}, "degree must be at least 1, got 0"),
        ({"max_shift": -0.1}, "max_shift must be at least 0, got -0.1"),
        ({"frozen": ("grid",)}, r"must be some of \['logits', 'shifts'\], got \['grid'\]"),
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
