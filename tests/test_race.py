"""Starts race: all are ranked, the ones on the better half of the grids learn, judged on pairs not used to learn."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import learning, losses, schedules
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Gaps, GaussNewton, WithCoefficients, race
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher, draw_noise, make_pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(1)
LEARNER = GaussNewton(steps=16, batch_size=10, validate_every=4, valid_batch=40)


@pytest.fixture(scope="module")
def pairs():
    teacher = Teacher(Solver("unipc", 20), batch_size=80)
    return make_pairs(MODEL, SCHEDULE, draw_noise(jax.random.key(0), 80, (2,)), teacher=teacher)


def make_task(pairs, parametrisation=Gaps(), learner=LEARNER):  # noqa: B008, a static value
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 4), losses.l2)
    return learning.make_task(student, pairs, KEY, parametrisation, learner)


def loss_of(task, found, pairs):
    return learning.distances(task.student, found, pairs, batch_size=40).mean()


def test_all_starts_are_ranked_and_the_best_of_the_better_grids_race(pairs):
    task = make_task(pairs, WithCoefficients())
    ranked = learning.rank(task)
    assert len(ranked) == 4 * 3  # dpmpp 3 is the solver itself
    assert [start.loss for start in ranked] == sorted(start.loss for start in ranked)
    some = jax.tree.map(lambda leaf: leaf[learning.task.order_of_round(task, jnp.int32(0))[:40]], pairs)
    for start in ranked[::5]:
        np.testing.assert_allclose(start.loss, loss_of(task, start.discretization, some), rtol=1e-5)
    chosen = race.entrants(ranked)
    assert [name.split()[0] for name in chosen] == [*dict.fromkeys(start.name.split()[0] for start in ranked)][:2]
    for name in chosen:
        of_grid = [start.name for start in ranked if start.name.split()[0] == name.split()[0]]
        assert of_grid[0] == name


def test_grids_with_the_same_times_race_once():
    geometric, solver = schedules.VEGeometric(), Solver("ddim", 4)
    ranked = [race.Start(name, learning.on_grid(name, geometric, solver), 0.0) for name in GRIDS]
    assert list(race.entrants(ranked)) == ["uniform", "quadratic"]  # and not logsnr


def test_the_worse_start_drops_out_and_the_winner_keeps_what_it_has_learned(pairs):
    task = make_task(pairs)
    learning.task.move.clear_cache()
    ended = learning.learn(task)
    (heat,) = ended.heats
    assert heat.step == 4
    assert set(heat.losses) == {*race.entrants(ended.ranked)}
    assert next(iter(heat.losses)) == ended.start
    alone = learning.learn(task, ended.start)
    chex.assert_trees_all_equal(ended.state, alone.state)
    assert alone.heats == []
    assert learning.task.move._cache_size() == 1  # compiled once


def test_a_heat_is_judged_on_the_pairs_that_are_learned_from_last(pairs):
    task = make_task(pairs, learner=replace(LEARNER, valid_batch=20))
    ended = learning.learn(task)
    order = np.asarray(learning.task.order_of_round(task, jnp.int32(0)))
    assert set(order.tolist()) == set(range(80))
    heat, name = ended.heats[0], ended.start
    *_, (state, _) = learning.steps(task, learning.begin(task, name), heat.step)
    last = jax.tree.map(lambda leaf: leaf[order[-40:]], pairs)
    found = task.discretization(state.params)
    np.testing.assert_allclose(heat.losses[name], loss_of(task, found, last), rtol=1e-5)


def test_held_out_pairs_judge_where_there_are_some(pairs):
    task = make_task(pairs, learner=replace(LEARNER, held_out=20))
    ended = learning.learn(task)
    *_, (state, _) = learning.steps(task, learning.begin(task, ended.start), 4)
    found = task.discretization(state.params)
    last = jax.tree.map(lambda leaf: leaf[60:], pairs)
    np.testing.assert_allclose(ended.heats[0].losses[ended.start], loss_of(task, found, last), rtol=1e-5)


def test_a_start_whose_loss_is_no_number_drops_out_and_without_any_other_it_is_an_error(pairs):
    task = make_task(pairs)

    def advance(broken):
        def move(name, state, step):
            if name in broken:
                raise FloatingPointError(f"the loss is nan at step {step}")
            for state, _ in learning.steps(task, state, step):  # noqa: B020, B007
                pass
            return state

        return move

    states = {name: learning.begin(task, name) for name in ("logsnr", "edm")}
    name, _, heats = race.race(task, states, advance({"edm"}))
    assert name == "logsnr"
    assert [*heats[0].losses] == ["logsnr"]
    with pytest.raises(FloatingPointError, match="no start has a finite loss: the loss is nan at step 4"):
        race.race(task, states, advance({"logsnr", "edm"}))


def test_the_same_race_is_run_again(pairs):
    first, second = (learning.learn(make_task(pairs)) for _ in range(2))
    chex.assert_trees_all_equal(first.state, second.state, strict=True)
    assert first.heats == second.heats
