"""Gradient descent: gradients, moving noise, batches, patience, rounds."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ld3_jax import make_student, schedules
from ld3_jax.learning import (
    Gaps,
    GradientDescent,
    Patience,
    SoftSurrogate,
    Task,
    WithCoefficients,
    begin,
    by_group,
    distances,
    on_grid,
    optimizers,
)
from ld3_jax.learning.gradient_descent import end_round
from ld3_jax.learning.student import run_in_batches, sample_losses
from ld3_jax.learning.task import move
from ld3_jax.losses import l2
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULES = {"vp": schedules.VPLinear(), "ve": schedules.VELinear()}
N = 3
SGD = optax.sgd(0.1)
KEY = jax.random.key(7)
BAD = jnp.asarray([4.0, 0.0, 0.0])  # on top of logits
STEPS = 61  # a validation is due at the last step, which does not end a round

only_vp = pytest.mark.parametrize("soft", ["vp"], indirect=True)


def student_of(schedule, solver="ddim", nfe=N, loss=l2):
    return make_student(gaussian.noise_model(gaussian.ring(), schedule), schedule, Solver(solver, nfe), loss)


def pairs_of(student, count, seed):
    """The targets are what the student makes on another grid, so that they can be reached."""
    x_T = student.schedule.prior_scale * jax.random.normal(jax.random.key(seed), (count, 2))
    return Pairs(x_T, run_in_batches(student, on_grid("edm", student.schedule, student.solver), x_T))


def rules(logits, shifts):
    return by_group({"logits": optimizers.sgd(logits, 10), "shifts": optimizers.sgd(shifts, 10)})


def patient_learner():
    """All of it new: without moving noise, at a rate that drives the shifts to their bounds."""
    patience = Patience(2, 0.5, floors=(("logits", 0.25), ("shifts", 0.125)), visits=2)
    return GradientDescent(optimizer=rules(0.05, 100.0), steps=STEPS, batch_size=2, frozen_steps=2, patience=patience)


SOFT = GradientDescent(
    optimizer=rules(0.05, 0.01),
    steps=STEPS,
    batch_size=4,
    surrogate=SoftSurrogate(gamma=2.0, rate=120.0, move_validation=True),
)


class Setting:
    """A task, and a run of so many steps on it."""

    def __init__(self, student, learner, count=8, steps=0, step=move):
        train, valid = pairs_of(student, count, 0), pairs_of(student, count, 1)
        self.task = Task(student, train, valid, KEY, Gaps(), learner)
        self.step = step
        self.states, self.figures = [begin(self.task, "logsnr")], []
        for _ in range(steps):
            state, figures = self.step(self.task, self.states[-1])
            self.states.append(state)
            self.figures.append(figures)

    def validate(self, state, **choices):
        learner = replace(self.task.learner, **choices)
        return learner.after_step(self.task._replace(learner=learner), state, learner.steps)

    def loss(self, params, x_T):
        found = self.task.discretization(params)
        return distances(self.task.student, found, self.task.valid._replace(x_T=x_T)).mean()


@pytest.fixture(scope="module")
def patient():
    """Seven steps, of a step that may be traced once."""
    once = jax.jit(chex.assert_max_traces(move.__wrapped__, n=1))
    return Setting(student_of(SCHEDULES["vp"]), patient_learner(), steps=7, step=once)


def _first_target(x, y):
    return y[:, 0] + 0 * x.sum(-1)


@pytest.fixture(scope="module")
def tagged():
    """Fourteen samples whose losses are powers of two, whatever the times and the noise."""
    setting = Setting(student_of(SCHEDULES["vp"], loss=_first_target), replace(SOFT, optimizer=SGD), 14)
    train = setting.task.train._replace(x_0=jnp.stack([2.0 ** jnp.arange(14)] * 2, -1))
    setting.task = setting.task._replace(train=train)
    return setting


@pytest.fixture(scope="module", params=sorted(SCHEDULES))
def soft(request):
    """Two rounds of two steps with moving noise."""
    return Setting(student_of(SCHEDULES[request.param]), SOFT, steps=4)


@jax.jit
def losses_and_gradients(task, params, noise):
    """Each sample's loss, and its gradient with respect to that sample's noise."""

    def total(noise):
        found = task.discretization(params)
        each = sample_losses(task.student, found, task.train._replace(x_T=noise))
        return each.sum(), each

    gradients, each = jax.grad(total, has_aux=True)(noise)
    return each, gradients


def test_without_a_surrogate_noise_is_not_stored(patient):
    assert all(state.learner.noise == state.learner.valid_noise == () for state in patient.states)
    assert all(figures.moved == 0 for figures in patient.figures)


def test_frozen_shifts_stay_while_logits_move(patient):
    for i, (old, new) in enumerate(zip(patient.states, patient.states[1:], strict=False)):
        assert np.array_equal(old.params["shifts"], new.params["shifts"]) == (i < 2)
        assert not np.array_equal(old.params["logits"], new.params["logits"])


def test_shifts_stay_within_their_bounds(patient):
    for state in patient.states[3:]:
        bound = patient.task.parametrisation.shift_bound(state.params, SCHEDULES["vp"])
        assert np.abs(state.params["shifts"]).max() == bound


def test_equal_choices_newly_built_compile_nothing_and_repeat_the_run(patient):
    patient.validate(patient.states[1])
    student = student_of(SCHEDULES["vp"])
    task = Task(student, patient.task.train, patient.task.valid, KEY, Gaps(), patient_learner())
    with jax.no_tracing():
        states = [begin(task, "logsnr")]
        for _ in range(3):
            states.append(patient.step(task, states[-1])[0])
        task.learner.after_step(task, states[1], STEPS)
    chex.assert_trees_all_equal(states, patient.states[:4])


def test_frozen_groups_stay_and_an_equal_task_newly_built_compiles_nothing(patient):
    def task():
        parametrisation, learner = (
            WithCoefficients(Gaps(frozen=("shifts",))),
            GradientDescent(optimizer=SGD, batch_size=4),
        )
        return patient.task._replace(parametrisation=parametrisation, learner=learner)

    def learn(task):
        state, _ = move(task, start)
        return task.learner.after_step(task, state, task.learner.steps)

    start = begin(task(), "logsnr")
    first = learn(task())
    chex.assert_trees_all_equal(first.params["shifts"], start.params["shifts"])
    assert not np.array_equal(first.params["logits"], start.params["logits"])
    assert np.any(first.params["coefficients"].predict)
    with jax.no_tracing():
        chex.assert_trees_all_equal(learn(task()), first)


def test_factors_scale_the_updates(patient):
    state = patient.states[0]
    slow = state._replace(
        learner=state.learner._replace(factors={"logits": jnp.float32(0.25), "shifts": jnp.float32(1)})
    )
    moves = [patient.step(patient.task, s)[0].params["logits"] - state.params["logits"] for s in (state, slow)]
    np.testing.assert_allclose(moves[1], 0.25 * moves[0], rtol=1e-4, atol=1e-7)


def test_the_figures_of_a_step_are_those_before_it(patient):
    alike = jax.tree.map(lambda leaf: jnp.repeat(leaf[3:4], 8, axis=0), patient.task.train)  # any batch is the same
    task, state = patient.task._replace(train=alike), patient.states[5]
    _, figures = patient.step(task, state)

    def mean_loss(params):
        return sample_losses(task.student, task.discretization(params), alike).mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    np.testing.assert_allclose(figures.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(figures.grad_norm, optax.tree.norm(grads), rtol=1e-4)


def test_every_sample_is_visited_at_most_once_a_round_in_an_order_fixed_by_the_key(tagged):
    def batches(key):
        """Sums of powers of two that tell which samples were in each batch; by round."""
        state, sums = tagged.states[0], []
        for _ in range(12):
            state, figures = tagged.step(tagged.task._replace(key=key), state)
            sums.append(int(4 * figures.loss))
        return np.reshape(sums, (4, 3))

    rounds = batches(KEY)
    assert [int(total).bit_count() for total in rounds.sum(1)] == [12] * 4
    assert np.bitwise_or.reduce(rounds, axis=None) == 2**14 - 1
    assert len({tuple(order) for order in rounds.tolist()}) == 4
    np.testing.assert_array_equal(batches(KEY), rounds)
    assert not np.array_equal(batches(jax.random.key(8)), rounds)


def test_better_times_become_the_best_and_worse_ones_do_not(patient):
    start, target = patient.states[0], begin(patient.task, "edm").params
    better = patient.validate(start._replace(params=target, learner=start.learner._replace(worse=jnp.int32(1))))
    chex.assert_trees_all_equal(better.best, target)
    assert better.best_loss == better.valid_loss < 1e-6 < start.best_loss
    assert better.learner.worse == 0
    worse = patient.validate(better._replace(params=start.params))
    np.testing.assert_allclose(worse.valid_loss, start.start_loss, rtol=1e-5)
    assert (worse.best_loss, worse.learner.worse) == (better.best_loss, 1)
    chex.assert_trees_all_equal((worse.best, worse.params), (target, start.params))


def test_times_whose_loss_is_no_number_are_never_the_best(patient):
    start = patient.states[0]
    state = patient.validate(start._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, start.params)))
    assert np.isnan(state.valid_loss)
    chex.assert_trees_all_equal((state.best, state.best_loss), (start.best, start.best_loss))


def test_out_of_patience_the_best_returns_and_the_rates_fall_to_their_floors(patient):
    state, seen = patient.states[0], []
    bad = {**state.params, "logits": state.params["logits"] + BAD}
    for step in (1, 5, 5, 5, 5):  # the first while the shifts are frozen
        state = patient.validate(state._replace(params=bad, step=jnp.int32(step)))
        assert (state.learner.worse, state.done) == (1, False), state.valid_loss
        chex.assert_trees_all_equal(state.params, bad)
        state = patient.validate(state)
        memory = state.learner
        assert memory.worse == 0
        chex.assert_trees_all_equal(state.params, patient.states[0].best)
        factors = (float(memory.factors[name]) for name in ("logits", "shifts"))
        seen.append((*factors, int(memory.floor_visits), bool(state.done)))
    assert seen == [
        (0.5, 1.0, 0, False),
        (0.25, 0.5, 0, False),
        (0.25, 0.25, 0, False),
        (0.25, 0.125, 1, False),
        (0.25, 0.125, 2, True),
    ]


def test_when_done_nothing_changes(patient):
    done = patient.states[5]._replace(done=jnp.asarray(True), params=patient.states[2].params)
    chex.assert_trees_all_equal(patient.step(patient.task, done)[0], done)
    chex.assert_trees_all_equal(patient.validate(done), done)


def test_without_patience_rates_stay(patient):
    state = patient.states[0]
    bad = {**state.params, "logits": state.params["logits"] + BAD}
    state = state._replace(params=bad, learner=state.learner._replace(worse=jnp.int32(100)))
    after = patient.validate(state, patience=None)
    chex.assert_trees_all_equal(after.params, bad)
    chex.assert_trees_all_equal(after.learner.factors, state.learner.factors)


def test_noise_moves_inside_its_ball(soft):
    radius = 2.0 * 2 / N**2 * soft.task.student.schedule.prior_scale
    farthest = [np.linalg.norm(state.learner.noise - soft.task.train.x_T, axis=-1).max() for state in soft.states]
    assert farthest[0] == 0
    assert 0.99 * radius < max(farthest) < 1.00001 * radius


def test_noise_moves_by_a_projected_gradient_step_where_the_loss_falls(soft):
    task, scale = soft.task, soft.task.student.schedule.prior_scale
    radius = 2.0 * 2 / N**2 * scale
    changed, accepted = [], []
    for old, new, figures in zip(soft.states, soft.states[1:], soft.figures, strict=False):
        old_noise, new_noise = old.learner.noise, new.learner.noise
        before, gradients = losses_and_gradients(task, old.params, old_noise)
        rate = 120.0 / N * scale**2 / task.learner.batch_size  # the loss is the mean of a batch
        offset = np.asarray(old_noise - rate * gradients - task.train.x_T)
        offset = offset * np.minimum(1, radius / np.linalg.norm(offset, axis=-1, keepdims=True))
        candidate = np.asarray(task.train.x_T + offset)
        after, _ = losses_and_gradients(task, new.params, jnp.asarray(candidate))
        moved = np.any(old_noise != new_noise, axis=-1)
        np.testing.assert_allclose(new_noise[moved], candidate[moved], rtol=1e-3, atol=1e-3 * radius)
        assert moved.sum() == 4 * figures.moved
        changed.append(moved)
        accepted.append(np.asarray(after < before))
    # Each sample is in one of a round's two batches.
    for first in (0, 2):
        times_changed, times_accepted = (sum(map(np.int32, each[first : first + 2])) for each in (changed, accepted))
        np.testing.assert_array_equal(times_changed[times_accepted == 2], 1)
        np.testing.assert_array_equal(times_changed[times_accepted == 0], 0)
        assert 0 < times_changed.sum() < 8


@only_vp
def test_a_step_leaves_validation_noise_alone(soft):
    chex.assert_trees_all_equal(soft.states[-1].learner.valid_noise, soft.task.valid.x_T)


@only_vp
def test_a_round_moves_validation_noise_and_measures_the_best_anew(soft):
    old, task = soft.states[-1], soft.task
    new = end_round(task.learner, task, old)
    radius = 2.0 * 2 / N**2 * task.student.schedule.prior_scale
    offset = np.linalg.norm(new.learner.valid_noise - task.valid.x_T, axis=-1)
    assert 0 < offset.max() < 1.00001 * radius
    before, after = (soft.loss(old.best, noise) for noise in (task.valid.x_T, new.learner.valid_noise))
    assert after < before
    np.testing.assert_allclose([new.best_loss, new.valid_loss], after, rtol=1e-4)
    same = (old.best, old.learner.noise, old.learner.noise_rate)
    chex.assert_trees_all_equal((new.params, new.learner.noise, new.learner.noise_rate), same)
    still = old._replace(done=jnp.asarray(True))
    chex.assert_trees_all_equal(end_round(task.learner, task, still), still)


@only_vp
def test_validation_starts_from_moved_noise_only_if_told_to(soft):
    start, x_T = soft.states[0], soft.task.valid.x_T
    state = start._replace(learner=start.learner._replace(valid_noise=1.5 * x_T))
    unmoved = replace(SOFT.surrogate, move_validation=False)
    for surrogate, noise in ((SOFT.surrogate, 1.5 * x_T), (unmoved, x_T)):
        loss = soft.validate(state, surrogate=surrogate).valid_loss
        np.testing.assert_allclose(loss, soft.loss(state.params, noise), rtol=1e-5)


def test_a_round_in_which_nothing_moves_halves_the_rate(tagged):
    old = tagged.states[0]
    old = old._replace(learner=old.learner._replace(worse=jnp.int32(3)))
    new = end_round(tagged.task.learner, tagged.task, old).learner
    chex.assert_trees_all_equal(new.valid_noise, tagged.task.valid.x_T)
    assert (new.noise_rate, new.worse) == (old.learner.noise_rate / 2, 0)


@pytest.mark.parametrize(("solver", "nfe"), [("dpmpp", 4), ("unipc", 4), ("ipndm", 4), ("heun", 5)])
def test_the_gradient_of_the_whole_objective_equals_finite_differences(solver, nfe, float64):
    student, gaps, schedule = student_of(SCHEDULES["vp"], solver, nfe), Gaps(), SCHEDULES["vp"]
    n = student.solver.n_steps
    start = gaps.init(on_grid("logsnr", schedule, student.solver), schedule, student.solver)
    bound = gaps.shift_bound(start, schedule)
    flat = jnp.concatenate([start["logits"], bound * jnp.asarray([0.4, -0.6, 0.2][: n - 1])])
    pairs = Pairs(jnp.asarray([[0.5, -1.0], [-0.3, 0.2]]), jnp.asarray([[0.7, -0.6], [-1.0, 0.1]]))

    @jax.jit
    @jax.value_and_grad
    def objective(flat):
        found = gaps.discretization({"logits": flat[:n], "shifts": flat[n:]}, schedule, student.solver)
        return sample_losses(student, found, pairs, remat=True).mean()

    gradient, step, differences = objective(flat)[1], 1e-4, np.zeros(len(flat))
    for i in range(len(flat)):
        values = [objective(flat.at[i].add(k * step))[0] for k in (-2, -1, 1, 2)]
        differences[i] = np.dot([1, -8, 8, -1], values) / (12 * step)
    assert np.abs(gradient).min() > 1e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        (Gaps, "space", "time"),
        (Gaps, "max_shift", -0.1),
        (Gaps, "max_shift", 5.0),
        (partial(optimizers.adam, steps=1), "rate", -1.0),
        (partial(optimizers.adam, steps=1), "rate", float("inf")),
        (GradientDescent, "frozen_steps", -1),
        (GradientDescent, "held_out", -1),
        (SoftSurrogate, "gamma", float("inf")),
        (SoftSurrogate, "rate", float("nan")),
        (Patience, "decay", float("nan")),
        (Patience, "floors", (("logits", -0.5),)),
        (GradientDescent, "steps", 0),
        (GradientDescent, "batch_size", 0),
        (GradientDescent, "validate_every", 0),
        (GradientDescent, "valid_batch", 0),
        (SoftSurrogate, "gamma", -1.0),
        (SoftSurrogate, "gamma", 0.0),
        (Patience, "validations", 0),
        (Patience, "visits", 0),
    ],
)
def test_a_bad_choice_is_refused_by_name(of, name, value):
    given = value[0][1] if name == "floors" else value
    with pytest.raises(ValueError, match=f"{name[:5]}.*{given}"):
        of(**{name: value})
