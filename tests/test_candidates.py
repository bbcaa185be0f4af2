"""Noises that few calls get wrong are taken more often, and weighted so that means stay what they are."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import candidates, learning, losses, schedules
from ld3_jax.learning import Gaps, GaussNewton, second_order
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, Teacher, draw_noise, make_pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
TEACHER = Teacher(Solver("unipc", 20), batch_size=100)
KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def x_T():
    return draw_noise(jax.random.key(0), 300, (2,))


@pytest.fixture(scope="module")
def chosen(x_T):
    return make_pairs(MODEL, SCHEDULE, x_T, teacher=TEACHER, choose=60)


def make_task(pairs, **learner):
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 4), losses.l2)
    return learning.make_task(student, pairs, KEY, Gaps(), GaussNewton(steps=12, **learner))


def test_the_weighted_mean_is_that_of_all_candidates_where_few_hold_most_of_it():
    rng, of_chosen, of_first = np.random.default_rng(0), [], []
    for _ in range(20):
        d = rng.lognormal(0, 2.5, 1000)
        indices, weight = candidates.choose(d, 100)
        of_chosen.append((weight * d[indices]).mean() / d.mean())
        of_first.append(d[:100].mean() / d.mean())
    assert np.std(of_chosen) < 0.01 < 0.5 < np.std(of_first)
    assert np.mean(of_chosen) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("count", [1, 7, 19])
def test_each_is_taken_at_most_once_and_none_that_is_not_finite(count):
    d = np.r_[np.geomspace(1e-6, 1e6, 19), np.nan, np.inf]
    indices, weight = candidates.choose(d, count)
    assert len({*indices.tolist()} & {*range(19)}) == count
    assert (np.diff(indices) > 0).all()
    assert weight.mean() == pytest.approx(1)
    with pytest.raises(
        FloatingPointError, match="of 21 candidate noises 19 have finite samples with few calls, not 20"
    ):
        candidates.choose(d, 20)


def test_equal_candidates_have_equal_weights():
    np.testing.assert_array_equal(candidates.choose(np.zeros(20), 5).weight, 1)


def test_pairs_of_chosen_noises_are_the_teachers_and_those_that_few_calls_get_wrong(x_T, chosen):
    where = [int(np.flatnonzero((np.asarray(x_T) == np.asarray(one)[None]).all(1))[0]) for one in chosen.x_T]
    alone = make_pairs(MODEL, SCHEDULE, x_T[np.array(where)], teacher=TEACHER)
    chex.assert_trees_all_equal(chosen._replace(weight=None), alone)
    difference = np.asarray(candidates.differences(MODEL, SCHEDULE, (x_T, None)))
    assert difference[where].mean() > 1.5 * difference.mean()
    assert (np.asarray(chosen.weight) * difference[where]).mean() == pytest.approx(difference.mean(), rel=0.1)


def test_a_cache_holds_what_was_chosen(tmp_path, x_T, chosen, monkeypatch):
    teacher = replace(TEACHER, cache=tmp_path)
    seen = []
    make_pairs(MODEL, SCHEDULE, x_T, teacher=teacher, choose=60, on_batch=lambda *done: seen.append(done))
    assert seen == [(i, 4) for i in range(1, 5)]
    for name in ("ld3_jax.candidates.differences", "ld3_jax.teacher._integrate"):
        monkeypatch.setattr(name, lambda *args: pytest.fail("the network is called again"))
    again = make_pairs(MODEL, SCHEDULE, x_T, teacher=teacher, choose=60)
    chex.assert_trees_all_equal(again, chosen)


@pytest.mark.parametrize(("choose", "allowed"), [(0, "at least 1"), (301, "at most 300"), (2.5, "a whole number")])
def test_how_many_are_chosen_is_checked(x_T, choose, allowed):
    with pytest.raises(ValueError, match=f"choose must be {allowed}, got {choose}"):
        make_pairs(MODEL, SCHEDULE, x_T, teacher=TEACHER, choose=choose)


@pytest.mark.parametrize("weight", [np.ones(59), np.ones((60, 1)), np.zeros(60), np.ones(60, int)])
def test_weights_are_a_positive_number_for_each_pair(chosen, weight):
    with pytest.raises(ValueError, match=r"weight must be an array of positive numbers|pairs must share"):
        make_task(chosen._replace(weight=weight))


def test_a_batch_has_one_pair_of_each_level_of_difficulty(chosen):
    task = make_task(chosen, batch_size=10)
    order = np.asarray(learning.task.order_of_round(task, jnp.int32(3)))
    assert {*order.tolist()} == {*range(60)}
    rank = np.argsort(np.argsort(np.asarray(chosen.weight)))
    np.testing.assert_array_equal(np.sort(rank[order].reshape(6, 10) // 6), np.tile(np.arange(10), (6, 1)))
    uneven = np.asarray(learning.task.order_of_round(make_task(chosen, batch_size=7), jnp.int32(3)))
    assert {*uneven.tolist()} == {*range(60)}
    assert (np.asarray(learning.task.order_of_round(task, jnp.int32(4))) != order).any()


def test_a_pair_of_weight_two_counts_as_two(chosen):
    few = Pairs(*(leaf[:4] for leaf in chosen[:2]))
    double = few._replace(weight=jnp.array([2.0, 1.0, 1.0, 1.0]))
    repeated = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 1, 2, 3])], few)
    models, losses_of = [], []
    for pairs in (double, repeated):
        task = make_task(pairs, batch_size=4)
        params = learning.begin(task, "logsnr").params
        models.append(second_order.quadratic_model(task, params, pairs, 40))
        losses_of.append(learning.task.validation_loss(task, params, pairs))
    for one, other in zip(*models, strict=True):
        np.testing.assert_allclose(4 * one, 5 * other, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(4 * losses_of[0], 5 * losses_of[1], rtol=1e-5)
