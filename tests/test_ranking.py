"""Where to start: all starts are ranked, and the best one learns."""

import contextlib
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import learning, losses, recording, schedules
from ld3_jax.learning import Gaps, GaussNewton, WithCoefficients, ranking
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


def make_task(pairs, parametrisation=Gaps(), learner=LEARNER, nfe=4):  # noqa: B008, a static value
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", nfe), losses.l2)
    return learning.make_task(student, pairs, KEY, parametrisation, learner)


def loss_of(task, found, pairs):
    return learning.distances(task.student, found, pairs, batch_size=40).mean()


def test_all_starts_are_ranked_on_the_pairs_that_come_first(pairs):
    task = make_task(pairs, WithCoefficients())
    ranked = learning.rank(task)
    assert len(ranked) == 4 * 3  # dpmpp 3 is the solver itself
    assert [start.loss for start in ranked] == sorted(start.loss for start in ranked)
    some = jax.tree.map(lambda leaf: leaf[learning.task.order_of_round(task, jnp.int32(0))[:40]], pairs)
    for start in ranked[::5]:
        np.testing.assert_allclose(start.loss, loss_of(task, start.discretization, some), rtol=1e-5)


def test_the_best_start_learns_by_a_program_that_is_compiled_once(pairs):
    task = make_task(pairs)
    learning.task.move.clear_cache()
    ended = learning.learn(task)
    assert ended.start == ended.ranked[0].name
    alone = learning.learn(task, ended.start)
    chex.assert_trees_all_equal(ended.state, alone.state, strict=True)
    assert alone.ranked == []
    assert learning.task.move._cache_size() == 1


def test_of_two_close_starts_the_one_learns_that_is_clearly_better_after_a_few_steps(pairs):
    task = make_task(pairs, nfe=8)
    ended = learning.learn(task)
    first, second = ended.ranked[:2]
    assert second.loss < 1.1 * first.loss
    assert ended.start == second.name
    alone = learning.learn(task, second.name)
    chex.assert_trees_all_equal(ended.state, alone.state, strict=True)  # a trial's steps are steps of learning
    assert ended.tried.keys() == {first.name, second.name}
    assert ended.tried[second.name] < 0.85 * ended.tried[first.name]
    assert alone.tried == {}
    calls, judged = task.student.solver.calls, 80  # validation samples: the first start before learning, both after 4
    trial = 4 * 10 * task.learner.calls(task, ended.state.params) + judged * calls  # with its validation
    assert ended.network_calls - alone.network_calls == trial + (len(ended.ranked) * 40 + 3 * judged) * calls


def test_a_run_that_is_stopped_in_a_trial_and_after_it_ends_the_same(pairs, tmp_path):
    task = make_task(pairs, nfe=8)
    whole = recording.learn(tmp_path / "whole", task)

    def stopping(at):
        @contextlib.contextmanager
        def watch(label, total):
            def update(done, **figures):
                if (label, done) == at:
                    raise KeyboardInterrupt

            yield update

        return watch

    for at in (("two starts", 6), ("learning", 2), ("learning", 9)):
        with pytest.raises(KeyboardInterrupt):
            recording.learn(tmp_path / "stopped", task, watch=stopping(at))
    again = recording.learn(tmp_path / "stopped", task)
    chex.assert_trees_all_equal(again.state, whole.state, strict=True)
    logs = [recording.read_log(tmp_path / name / recording.LOG) for name in ("whole", "stopped")]
    assert [line["step"] for line in logs[0]] == [*range(1, 17)]
    assert logs[0] == logs[1]


def test_a_trial_that_diverges_is_lost(pairs, monkeypatch):
    task = make_task(pairs, nfe=8)
    ranked = learning.rank(task)
    take_step = ranking.take_step

    def step(task, state, number):
        state, figures = take_step(task, state, number)
        lost = jnp.where(jnp.allclose(state.learner.start, first), jnp.nan, 1.0)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * lost, state.params)), figures

    for diverges, learns in (ranked[:2], ranked[1::-1]):
        first = learning.begin(task, diverges.discretization).learner.start
        monkeypatch.setattr(ranking, "take_step", step)
        kept, lost = ranking.trials(task, ranked)
        assert (kept.name, lost.name, lost.loss) == (learns.name, diverges.name, np.inf)


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Broken(Gaps):
    """Gaps whose starts are NaN, except on the grids that are named."""

    sound: tuple[str, ...] = ()

    def starts(self, grid, schedule, solver):
        given = super().starts(grid, schedule, solver)
        return given if grid in self.sound else jax.tree.map(lambda t: t * jnp.nan, given)


def test_a_start_without_a_finite_loss_comes_last_and_without_any_other_it_is_an_error(pairs):
    assert learning.rank(make_task(pairs, Broken(sound=("edm",))))[0].name == "edm"
    with pytest.raises(FloatingPointError, match="no start has a finite loss: uniform has nan"):
        learning.learn(make_task(pairs, Broken()))
