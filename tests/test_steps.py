"""The jitted steps of LD3: gradients, moving noise, batches, patience, rounds."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ld3_jax import losses, metrics, optimizers, schedules, solvers, steps, timesteps
from ld3_jax.networks import gaussian
from ld3_jax.steps import Learning
from ld3_jax.teacher import Pairs
from ld3_jax.timesteps import TimestepParams

SCHEDULES = {"vp": schedules.vp_linear(), "ve": schedules.ve_edm()}
N = 3
KEY = jax.random.key(7)
PATIENT = Learning(batch_size=2, frozen_steps=2, patience=2, decay=0.5, floors=(0.25, 0.125), floor_visits=2)
BAD = jnp.asarray([4.0, 0.0, 0.0])  # on top of logits
SOFT = Learning(batch_size=4, gamma=2.0, noise_rate=120.0, move_validation=True)


def make_student(schedule, solver="ddim", nfe=N, loss=losses.l2):
    model = gaussian.noise_model(gaussian.ring(), schedule)
    return metrics.make_student(model, schedule, solvers.Method(solver, nfe), loss)


def grid_params(schedule, name="logsnr", n=N):
    t = timesteps.grid(name, schedule, n)
    return timesteps.to_params(t, t, schedule)


def make_pairs(student, count, seed):
    """The targets are what the student makes on another grid, so that they can be reached."""
    x_T = student.schedule.prior_scale * jax.random.normal(jax.random.key(seed), (count, 2))
    t = timesteps.grid("edm", student.schedule, student.method.n_steps)
    return Pairs(x_T, metrics.run(student, t, t, Pairs(x_T, x_T)))


def assert_identical(state, other):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), state, other)


only_vp = pytest.mark.parametrize("soft", ["vp"], indirect=True)


@jax.jit
def losses_and_gradients(student, params, noise, pairs):
    """Each sample's loss, and its gradient with respect to that sample's noise."""

    def total(noise):
        t = timesteps.from_params(params, student.schedule)
        each = metrics.sample_losses(student, *t, pairs._replace(x_T=noise))
        return each.sum(), each

    gradients, each = jax.grad(total, has_aux=True)(noise)
    return each, gradients


class Setting:
    """A student with its pairs, and a run of so many steps on them."""

    def __init__(self, student, learning, optimizer, count=8, run=0):
        self.student, self.learning, self.optimizer = student, learning, optimizer
        self.train, self.valid = make_pairs(student, count, 0), make_pairs(student, count, 1)
        start = grid_params(student.schedule)
        self.states = [steps.init_state(student, self.train, self.valid, start, optimizer, learning)]
        self.figures = []
        for _ in range(run):
            state, figures = self.step(self.states[-1])
            self.states.append(state)
            self.figures.append(figures)

    def step(self, state, key=KEY):
        return steps.train_step(state, self.student, self.train, key, optimizer=self.optimizer, learning=self.learning)

    def validate(self, state, learning=None):
        return steps.validate(state, self.student, self.valid, learning=learning or self.learning)

    def end_round(self, state):
        return steps.end_round(state, self.student, self.valid, learning=self.learning)

    def loss(self, params, x_T):
        t = timesteps.from_params(params, self.student.schedule)
        return metrics.distances(self.student, *t, self.valid._replace(x_T=x_T)).mean()


@pytest.fixture(scope="module")
def patient():
    """Seven steps without moving noise, at a rate that drives the shifts to their bounds."""
    optimizer = optimizers.make_optimizer("sgd", 0.05, "sgd", 100.0, 10)
    return Setting(make_student(SCHEDULES["vp"]), PATIENT, optimizer, run=7)


def _first_target(x, y):
    return y[:, 0] + 0 * x.sum(-1)


@pytest.fixture(scope="module")
def tagged():
    """Fourteen samples whose losses are powers of two, whatever the schedule and the noise."""
    setting = Setting(make_student(SCHEDULES["vp"], loss=_first_target), SOFT, optax.sgd(0.1), count=14)
    setting.train = setting.train._replace(x_0=jnp.stack([2.0 ** jnp.arange(14)] * 2, -1))
    return setting


@pytest.fixture(scope="module", params=sorted(SCHEDULES))
def soft(request):
    """Two rounds of two steps with moving noise."""
    optimizer = optimizers.make_optimizer("sgd", 0.05, "sgd", 0.01, 10)
    return Setting(make_student(SCHEDULES[request.param]), SOFT, optimizer, run=4)


def test_without_a_radius_noise_is_not_stored(patient):
    assert all(state.noise == state.valid_noise == () for state in patient.states)
    assert all(figures.moved == 0 for figures in patient.figures)


def test_frozen_shifts_rest_while_logits_move(patient):
    for i, (old, new) in enumerate(zip(patient.states, patient.states[1:], strict=False)):
        assert np.array_equal(old.params.shifts, new.params.shifts) == (i < PATIENT.frozen_steps)
        assert not np.array_equal(old.params.logits, new.params.logits)


def test_shifts_stay_within_their_bounds(patient):
    for state in patient.states[3:]:
        bound = timesteps.shift_bound(state.params, SCHEDULES["vp"])
        assert np.abs(state.params.shifts).max() == bound


def test_many_steps_are_one_compilation(patient):
    compiled = steps.train_step._cache_size()
    other = Setting(patient.student, PATIENT, patient.optimizer, run=3)
    assert steps.train_step._cache_size() == compiled
    assert_identical(other.states, patient.states[:4])


def test_factors_scale_the_updates(patient):
    state = patient.states[0]
    slow = state._replace(factors=TimestepParams(jnp.float32(0.25), jnp.float32(1.0)))
    moves = [patient.step(s)[0].params.logits - state.params.logits for s in (state, slow)]
    np.testing.assert_allclose(moves[1], 0.25 * moves[0], rtol=1e-4, atol=1e-7)


def test_the_figures_of_a_step_are_those_before_it(patient):
    alike = jax.tree.map(lambda leaf: jnp.repeat(leaf[3:4], 8, axis=0), patient.train)  # so that any batch is the same
    state, arguments = patient.states[5], {"optimizer": patient.optimizer, "learning": PATIENT}
    _, figures = steps.train_step(state, patient.student, alike, KEY, **arguments)

    def mean_loss(params):
        t = timesteps.from_params(params, SCHEDULES["vp"])
        return metrics.sample_losses(patient.student, *t, alike).mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    np.testing.assert_allclose(figures.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(figures.grad_norm, optax.tree.norm(grads), rtol=1e-4)


def test_every_sample_is_visited_at_most_once_a_round_in_an_order_fixed_by_the_key(tagged):
    def batches(key):
        """Sums of powers of two that tell which samples were in each batch; by round."""
        state, sums = tagged.states[0], []
        for _ in range(12):
            state, figures = tagged.step(state, key)
            sums.append(int(4 * figures.loss))
        return np.reshape(sums, (4, 3))

    rounds = batches(KEY)
    assert [int(total).bit_count() for total in rounds.sum(1)] == [12] * 4
    assert np.bitwise_or.reduce(rounds, axis=None) == 2**14 - 1
    assert len({tuple(order) for order in rounds.tolist()}) == 4
    np.testing.assert_array_equal(batches(KEY), rounds)
    assert not np.array_equal(batches(jax.random.key(8)), rounds)


def test_a_better_schedule_becomes_the_best_and_a_worse_one_does_not(patient):
    start, target = patient.states[0], grid_params(SCHEDULES["vp"], "edm")
    better = patient.validate(start._replace(params=target, worse=jnp.int32(1)))
    assert_identical(better.best, target)
    assert better.best_loss == better.valid_loss < 1e-6 < start.best_loss
    assert better.worse == 0
    worse = patient.validate(better._replace(params=start.params))
    np.testing.assert_allclose(worse.valid_loss, start.start_loss, rtol=1e-5)
    assert (worse.best_loss, worse.worse) == (better.best_loss, 1)
    assert_identical((worse.best, worse.params), (target, start.params))


def test_a_schedule_whose_loss_is_no_number_is_never_the_best(patient):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, patient.states[0].params)
    state = patient.validate(patient.states[0]._replace(params=broken))
    assert np.isnan(state.valid_loss)
    assert_identical((state.best, state.best_loss), (patient.states[0].best, patient.states[0].best_loss))


def test_out_of_patience_the_best_returns_and_the_rates_fall_to_their_floors(patient):
    state, seen = patient.states[0], []
    bad = state.params._replace(logits=state.params.logits + BAD)
    for step in (1, 5, 5, 5, 5):  # the first while the shifts are frozen
        state = patient.validate(state._replace(params=bad, step=jnp.int32(step)))
        assert (state.worse, state.done) == (1, False), state.valid_loss
        assert_identical(state.params, bad)
        state = patient.validate(state)
        assert state.worse == 0
        assert_identical(state.params, patient.states[0].best)
        seen.append((*map(float, state.factors[:2]), int(state.floor_visits), bool(state.done)))
    assert seen == [
        (0.5, 1.0, 0, False),
        (0.25, 0.5, 0, False),
        (0.25, 0.25, 0, False),
        (0.25, 0.125, 1, False),
        (0.25, 0.125, 2, True),
    ]


def test_when_done_nothing_changes(patient):
    done = patient.states[5]._replace(done=jnp.asarray(True), params=patient.states[2].params)
    assert_identical(patient.step(done)[0], done)
    assert_identical(patient.validate(done), done)


def test_without_patience_rates_stay(patient):
    state = patient.states[0]
    bad = state.params._replace(logits=state.params.logits + BAD)
    state = state._replace(params=bad, worse=jnp.int32(100))
    after = patient.validate(state, dataclasses.replace(PATIENT, patience=0))
    assert_identical(after.params, bad)
    assert_identical(after.factors, state.factors)


def test_noise_moves_inside_its_ball(soft):
    radius = SOFT.gamma * 2 / N**2 * soft.student.schedule.prior_scale
    farthest = [np.linalg.norm(state.noise - soft.train.x_T, axis=-1).max() for state in soft.states]
    assert farthest[0] == 0
    assert 0.99 * radius < max(farthest) < 1.00001 * radius


def test_noise_moves_by_a_projected_gradient_step_where_the_loss_falls(soft):
    scale = soft.student.schedule.prior_scale
    radius = SOFT.gamma * 2 / N**2 * scale
    changed, accepted = [], []
    for old, new, figures in zip(soft.states, soft.states[1:], soft.figures, strict=False):
        before, gradients = losses_and_gradients(soft.student, old.params, old.noise, soft.train)
        rate = SOFT.noise_rate / N * scale**2 / SOFT.batch_size  # the loss is the mean of a batch
        offset = np.asarray(old.noise - rate * gradients - soft.train.x_T)
        offset = offset * np.minimum(1, radius / np.linalg.norm(offset, axis=-1, keepdims=True))
        candidate = np.asarray(soft.train.x_T + offset)
        after, _ = losses_and_gradients(soft.student, new.params, jnp.asarray(candidate), soft.train)
        moved = np.any(old.noise != new.noise, axis=-1)
        np.testing.assert_allclose(new.noise[moved], candidate[moved], rtol=1e-3, atol=1e-3 * radius)
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
    assert_identical(soft.states[-1].valid_noise, soft.valid.x_T)


@only_vp
def test_a_round_moves_validation_noise_and_measures_the_best_anew(soft):
    old = soft.states[-1]
    new = soft.end_round(old)
    radius = SOFT.gamma * 2 / N**2 * soft.student.schedule.prior_scale
    offset = np.linalg.norm(new.valid_noise - soft.valid.x_T, axis=-1)
    assert 0 < offset.max() < 1.00001 * radius
    before, after = (soft.loss(old.best, noise) for noise in (soft.valid.x_T, new.valid_noise))
    assert after < before
    np.testing.assert_allclose([new.best_loss, new.valid_loss], after, rtol=1e-4)
    assert_identical((new.params, new.noise, new.noise_rate), (old.best, old.noise, old.noise_rate))
    still = old._replace(done=jnp.asarray(True))
    assert_identical(soft.end_round(still), still)


@only_vp
def test_validation_starts_from_moved_noise_only_if_told_to(soft):
    state = soft.states[0]._replace(valid_noise=1.5 * soft.valid.x_T)
    unmoved = dataclasses.replace(SOFT, move_validation=False)
    for learning, noise in ((SOFT, state.valid_noise), (unmoved, soft.valid.x_T)):
        loss = soft.validate(state, learning).valid_loss
        np.testing.assert_allclose(loss, soft.loss(state.params, noise), rtol=1e-5)


def test_a_round_in_which_nothing_moves_halves_the_rate(tagged):
    old = tagged.states[0]._replace(worse=jnp.int32(3))
    new = tagged.end_round(old)
    assert_identical(new.valid_noise, tagged.valid.x_T)
    assert (new.noise_rate, new.worse) == (old.noise_rate / 2, 0)


@pytest.mark.parametrize(("solver", "nfe"), [("dpmpp", 4), ("unipc", 4), ("ipndm", 4), ("heun", 5)])
def test_the_gradient_of_the_whole_objective_equals_finite_differences(solver, nfe, float64):
    student = make_student(SCHEDULES["vp"], solver, nfe)
    n = student.method.n_steps
    params = grid_params(SCHEDULES["vp"], n=n)
    bound = timesteps.shift_bound(params, SCHEDULES["vp"])
    flat = jnp.concatenate([params.logits, bound * jnp.asarray([0.4, -0.6, 0.2][: n - 1])])
    pairs = Pairs(jnp.asarray([[0.5, -1.0], [-0.3, 0.2]]), jnp.asarray([[0.7, -0.6], [-1.0, 0.1]]))

    @jax.jit
    @jax.value_and_grad
    def objective(flat):
        t = timesteps.from_params(TimestepParams(flat[:n], flat[n:]), SCHEDULES["vp"])
        return metrics.sample_losses(student, *t, pairs, remat=True).mean()

    gradient, step, differences = objective(flat)[1], 1e-4, np.zeros(len(flat))
    for i in range(len(flat)):
        values = [objective(flat.at[i].add(k * step))[0] for k in (-2, -1, 1, 2)]
        differences[i] = np.dot([1, -8, 8, -1], values) / (12 * step)
    assert np.abs(gradient).min() > 1e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize(
    "choice",
    [
        {"space": "time"},
        {"steps": 0},
        {"batch_size": 0},
        {"validate_every": 0},
        {"valid_batch": 0},
        {"gamma": -1.0},
        {"max_shift": -0.1},
    ],
    ids=lambda choice: next(iter(choice)),
)
def test_a_bad_choice_is_refused_by_name(choice):
    ((name, value),) = choice.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Learning(**choice)
