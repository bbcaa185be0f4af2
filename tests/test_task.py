"""What holds for every learner: batches, validation, the end, repetition. A new learner is a new row."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import learning, schedules
from ld3_jax.learning import Gaps, GradientDescent, LevenbergMarquardt, Patience, Task, TrainState
from ld3_jax.learning.task import batch_indices, move, validation_is_due
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
KEY = jax.random.key(7)
LEARNERS = {
    "gradient_descent": lambda: GradientDescent(steps=5, batch_size=4, validate_every=2, patience=Patience()),
    "levenberg_marquardt": lambda: LevenbergMarquardt(steps=5, batch_size=4, validate_every=2),
}


def make_task(learner, x_T):
    """All of it newly built but for the noise."""
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    student = learning.make_student(model, SCHEDULE, Solver("ddim", 2))
    return learning.make_task(student, Pairs(x_T, -0.5 * x_T), KEY, Gaps(), LEARNERS[learner]())


class Run(NamedTuple):
    name: str
    task: Task
    states: list[TrainState]  # before the first step and after each of two

    def again(self):
        """The same once more, of equal choices."""
        return run_of(self.name, self.task.train.x_T)


def run_of(name, x_T):
    task = make_task(name, x_T)
    states = [learning.begin(task, "logsnr")]
    for step in (1, 2):
        new, _ = move(task, states[-1])
        states.append(task.learner.after_step(task, new, step))
    return Run(name, task, states)


@pytest.fixture(scope="module", params=LEARNERS)
def run(request):
    return run_of(request.param, jax.random.normal(jax.random.key(0), (8, 2)))


def test_a_learner_is_a_static_value(run):
    learner = run.task.learner
    assert isinstance(learner, state.Learner)
    assert not jax.tree.leaves(learner)
    assert len({learner, LEARNERS[run.name]()}) == 1


def test_the_start_is_the_best_so_far_and_something_better_follows(run):
    start, first, second = run.states
    chex.assert_trees_all_equal(start.best, start.params, first.best)
    assert start.best_loss == start.start_loss == start.valid_loss == first.valid_loss  # no validation after one step
    chex.assert_trees_all_equal(second.best, second.params)
    assert second.best_loss == second.valid_loss < second.start_loss == start.start_loss
    assert [int(each.step) for each in run.states] == [0, 1, 2]


def test_equal_choices_newly_built_compile_nothing_and_repeat_the_run(run):
    with jax.no_tracing():
        again = run.again()
    chex.assert_trees_all_equal(again.states, run.states, strict=True)


def test_when_done_nothing_changes(run):
    done = run.states[2]._replace(done=jnp.asarray(True), params=run.states[0].params)
    chex.assert_trees_all_equal(move(run.task, done)[0], done)
    chex.assert_trees_all_equal(run.task.learner.after_step(run.task, done, 2), done)


def test_numbers_whose_loss_is_no_number_are_never_the_best(run):
    good = run.states[2]
    bad = good._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, good.params))
    after = run.task.learner.after_step(run.task, bad, 4)
    assert np.isnan(after.valid_loss)
    chex.assert_trees_all_equal((after.best, after.best_loss), (good.best, good.best_loss))


def test_a_start_whose_loss_is_no_number_is_no_obstacle(run):
    broken = run.task._replace(valid=run.task.valid._replace(x_0=run.task.valid.x_0 * jnp.nan))
    start = learning.begin(broken, "logsnr")
    assert np.isnan(start.start_loss)
    assert start.best_loss == np.inf


def test_a_validation_is_due_after_every_so_many_steps_and_after_the_last(run):
    assert [step for step in range(1, 6) if validation_is_due(run.task, step)] == [2, 4, 5]


def test_a_round_visits_whole_batches_of_different_samples_in_an_order_of_its_own():
    noise = jnp.zeros((14, 2))
    task = make_task("gradient_descent", noise)
    indices = jax.jit(batch_indices)

    def rounds(key):
        """Four rounds of three batches of four."""
        found = [indices(task._replace(key=key), jnp.int32(step)) for step in range(12)]
        return np.reshape(found, (4, 12))

    found = rounds(KEY)
    assert all(len(set(order)) == 12 for order in found.tolist())
    assert len(set(found.ravel().tolist())) == 14
    assert len({tuple(order) for order in found.tolist()}) == 4
    np.testing.assert_array_equal(rounds(KEY), found)
    assert not np.array_equal(rounds(jax.random.key(8)), found)
