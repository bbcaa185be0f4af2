"""One curve for every number of calls: it starts as the hand-made grid, stays a grid, and serves numbers unseen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import curve, metrics, schedules, solvers, timesteps, train
from ld3_jax.learning import Learning, discretization, students, together
from ld3_jax.networks import gaussian
from ld3_jax.teacher import Pairs
from ld3_jax.timesteps import TimestepParams

SCHEDULE = schedules.vp_linear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
CURVE = Learning(nfes=(3, 6), warped="logsnr", steps=100, batch_size=20, valid_batch=50)


def random_params(degree=16, size=1.0):
    logits, shifts = (size * jax.random.normal(jax.random.key(i), (2, degree - i)) for i in (0, 1))
    return TimestepParams(logits, shifts)


def make_student(nfe):
    return metrics.make_student(MODEL, SCHEDULE, solvers.Method("dpmpp", nfe, order=2))


@pytest.fixture(scope="module")
def pairs():
    x_T = jax.random.normal(jax.random.key(0), (120, 2))
    return Pairs(x_T, solvers.sample(MODEL, SCHEDULE, x_T, timesteps.grid("logsnr", SCHEDULE, 60), solver="unipc"))


@pytest.mark.parametrize("grid", timesteps.GRIDS)
@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_the_start_is_the_hand_made_grid(grid, n, float64):
    t, t_c = curve.read_off(curve.start(16), SCHEDULE, n, grid)
    np.testing.assert_allclose(t, timesteps.grid(grid, SCHEDULE, n), rtol=1e-9)
    np.testing.assert_array_equal(t, t_c)


@pytest.mark.parametrize("n", [1, 5, 12, 50])
def test_any_parameters_give_descending_times_with_exact_ends(n):
    t, t_c = curve.read_off(random_params(size=3.0), SCHEDULE, n)
    assert (np.diff(t) < 0).all()
    assert (np.diff(t_c) < 0).all()
    for times in (t, t_c):
        assert float(times[0]) == np.float32(SCHEDULE.t_max)
        assert float(times[-1]) == np.float32(SCHEDULE.t_min)
    assert n == 1 or jnp.abs(t - t_c).max() > 1e-3


def test_half_the_steps_are_every_other_point_of_the_whole_where_the_curve_does_not_bend(float64):
    straight = jax.tree.map(lambda leaf: leaf.at[1].set(0.0), random_params())
    for params, same in ((straight, True), (random_params(), False)):
        fine, _ = curve.read_off(params, SCHEDULE, 12)
        coarse, _ = curve.read_off(params, SCHEDULE, 6)
        assert np.allclose(coarse, fine[::2], rtol=1e-12) == same


def test_the_gradient_equals_finite_differences(float64):
    params, direction = random_params(4, 0.1), random_params(4)

    def moved(epsilon):
        point = jax.tree.map(lambda leaf, way: leaf + epsilon * way, params, direction)
        return jnp.stack(curve.read_off(point, SCHEDULE, 5))

    slope = jax.jacfwd(moved)(0.0)
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-9)


def test_one_curve_beats_the_hand_made_grids_where_it_was_learned_and_between(pairs):
    known, unseen = (jax.tree.map(lambda leaf, part=part: leaf[part], pairs) for part in (slice(60), slice(60, None)))
    state = train.fit(make_student(5), known, known, jax.random.key(1), learning=CURVE)
    assert state.best_loss < 0.7 * state.start_loss
    for nfe in (3, 4, 5, 6):
        student = make_student(nfe)
        t, t_c, _ = discretization(state.best, student, CURVE)
        learned = float(metrics.distances(student, t, t_c, unseen, None).mean())
        assert learned < train.rank_grids(student, unseen)[0][1]


def test_the_loss_of_a_curve_is_the_geometric_mean_over_the_numbers_of_calls(pairs):
    ranking = dict(train.rank_grids(make_student(5), pairs, CURVE))
    each = [dict(train.rank_grids(one, pairs)) for one in students(make_student(4), CURVE)]
    for name, loss in ranking.items():
        np.testing.assert_allclose(loss, np.sqrt(each[0][name] * each[1][name]), rtol=1e-5)
    assert float(together([jnp.asarray(0.3)])) == np.float32(0.3)


@pytest.mark.parametrize("choice", [{"learner": "lm"}, {"gamma": 0.1}, {"what": ("times", "coefficients")}])
def test_what_a_curve_cannot_have_is_refused(choice):
    with pytest.raises(ValueError, match="a curve needs the learner 'optax', gamma 0, and no coefficients"):
        replace(CURVE, **choice)


def test_a_grid_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"warped must be one of \['edm', .*got 'even'"):
        Learning(warped="even")
