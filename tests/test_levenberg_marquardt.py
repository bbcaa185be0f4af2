"""Learning by Levenberg-Marquardt: the quadratic model, steps that never make it worse, memory, refusals."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from ld3_jax import grids, learning, losses, schedules, solvers
from ld3_jax.learning import Gaps, GradientDescent, LevenbergMarquardt, WithCoefficients
from ld3_jax.learning.levenberg_marquardt import descend
from ld3_jax.learning.parametrisation import Group
from ld3_jax.learning.second_order import Quadratic, quadratic_model, solution
from ld3_jax.learning.student import run_in_batches, sample_losses
from ld3_jax.learning.task import move
from ld3_jax.networks import gaussian, lpips
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(1)
LM = LevenbergMarquardt(steps=6, batch_size=20)
# Weight decay would move numbers that have no gradient.
DECAYS = GradientDescent(optimizer=optax.adamw(0.05, weight_decay=0.5), batch_size=20)
COEFFICIENTS_ALONE = WithCoefficients(Gaps(frozen=("logits", "shifts")))


def make_student(loss=losses.l2, nfe=4, solver="dpmpp", model=MODEL):
    return learning.make_student(model, SCHEDULE, Solver(solver, nfe), loss)


@pytest.fixture(scope="module")
def pairs():
    x_T = jax.random.normal(jax.random.key(0), (20, 2))
    t = grids.grid("logsnr", SCHEDULE, 40)
    sample = jax.jit(lambda x_T: solvers.sample(MODEL, SCHEDULE, x_T, t, solver="unipc"))
    return Pairs(x_T, sample(x_T))


class Run:
    """A whole run: its task, first and last state, and every step's figures."""

    def __init__(self, student, pairs, parametrisation, learner, start="logsnr"):
        self.task = learning.make_task(student, pairs, KEY, parametrisation, learner)
        self.first = learning.begin(self.task, start)
        told = list(learning.steps(self.task, self.first))
        self.last, self.figures = told[-1][0], [figures for _, figures in told]
        self.reached = float(self.last.best_loss / self.last.start_loss)


@pytest.fixture(scope="module")
def times(pairs):
    return Run(make_student(), pairs, Gaps(), replace(LM, steps=10))


@pytest.fixture(scope="module")
def everything(pairs):
    return Run(make_student(), pairs, WithCoefficients(), replace(LM, steps=10))


@pytest.fixture(scope="module")
def under_the_root(pairs):
    return Run(make_student(losses.rmse, solver="ipndm"), pairs, WithCoefficients(), replace(LM, steps=8))


@pytest.mark.parametrize("run_of", ["times", "everything", "under_the_root"])
def test_a_few_steps_go_far_below_the_start(run_of, request):
    done = request.getfixturevalue(run_of)
    assert done.figures[6].loss < 0.5 * done.first.start_loss  # after six steps
    learned = learning.describe(done.task, done.last)
    loss = learned.distances(done.task.student, done.task.valid).mean()
    np.testing.assert_allclose(loss, done.last.best_loss, rtol=1e-4)


def test_coefficients_go_below_times_alone(times, everything):
    assert everything.reached < 0.7 * times.reached


@pytest.mark.parametrize("run_of", ["times", "everything", "under_the_root"])
def test_the_batch_s_loss_never_rises(run_of, request):
    seen = [float(figures.loss) for figures in request.getfixturevalue(run_of).figures]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(seen))
    assert seen[-1] < seen[0]


@pytest.mark.parametrize(
    ("learner", "parametrisation", "frozen"),
    [
        (LM, COEFFICIENTS_ALONE, ["logits", "shifts"]),
        (LM, WithCoefficients(Gaps(frozen=("shifts",)), frozen=("coefficients",)), ["shifts", "coefficients"]),
        (DECAYS, WithCoefficients(Gaps(frozen=("logits",)), frozen=("coefficients",)), ["logits", "coefficients"]),
    ],
    ids=["times", "all but logits", "all but shifts, gradient descent"],
)
def test_what_is_frozen_does_not_move(learner, parametrisation, frozen, pairs):
    student = make_student(nfe=3, solver="ddim")
    done = Run(student, pairs, parametrisation, replace(learner, steps=2, validate_every=2), start="edm")
    assert frozen == [name for name in ("logits", "shifts", "coefficients") if not rates_of(done, name)]
    for name, group in done.first.params.items():
        if name in frozen:
            chex.assert_trees_all_equal(done.last.params[name], done.last.best[name], group, strict=True)
        else:
            moved = ravel_pytree(done.last.params[name])[0] - ravel_pytree(group)[0]
            assert np.abs(moved).max() > 1e-3


def rates_of(done, name):
    return done.task.groups()[name].rate if name in done.task.groups() else 0.0


@pytest.mark.parametrize("loss", [losses.l2, losses.rmse], ids=["l2", "rmse"])
def test_the_model_has_the_gradient_and_for_small_residuals_the_curvature_of_the_loss(loss, pairs, float64):
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 3, order=2), loss)
    pairs = jax.tree.map(lambda leaf: leaf[:4].astype(jnp.float64), pairs)
    task = learning.make_task(student, pairs, KEY, WithCoefficients(), replace(LM, batch_size=4))
    start = learning.on_grid("logsnr", SCHEDULE, student.solver)
    params = WithCoefficients().init(start, SCHEDULE, student.solver)
    flat, unravel = ravel_pytree(params)

    def mean_loss(flat, pairs):
        return sample_losses(student, task.discretization(unravel(flat)), pairs).mean()

    @jax.jit
    def quadratic(pairs):
        return quadratic_model(task, params, pairs, 4)

    @jax.jit
    def gradients(pairs, steps):
        return jax.lax.map(lambda step: jax.value_and_grad(mean_loss)(flat + step, pairs), steps)

    eye = 1e-4 * np.eye(len(flat))
    steps = np.concatenate([0 * eye[:1], eye, -eye])
    model, (values, slopes) = quadratic(pairs), gradients(pairs, steps)
    np.testing.assert_allclose(model.loss, values[0], rtol=1e-9)
    np.testing.assert_allclose(model.gradient, slopes[0], rtol=1e-6, atol=1e-9)
    if loss is losses.l2:  # where the residuals vanish, nothing is left out of the Hessian
        own = pairs._replace(x_0=run_in_batches(student, task.discretization(params), pairs.x_T))
        _, slopes = gradients(own, steps)
        hessian = (slopes[1 : len(flat) + 1] - slopes[len(flat) + 1 :]) / 2e-4
        np.testing.assert_allclose(quadratic(own).matrix, hessian, atol=1e-6 * np.abs(hessian).max())


@Partial
def picture(x):
    """States in the plane as images of 31 x 31 pixels."""
    waves = jnp.sin(jnp.arange(2.0 * 31 * 31 * 3)).reshape(2, 31, 31, 3)
    return jnp.tanh(jnp.einsum("nd,dhwc->nhwc", x, waves))


def test_lpips_of_decoded_samples_is_learned_in_a_few_steps(pairs):
    student = make_student(lpips.load("alex"), nfe=3, solver="ddim")._replace(decode=picture)
    few = Pairs(pairs.x_T[:4], picture(pairs.x_0[:4]))
    done = Run(student, few, Gaps(), LevenbergMarquardt(steps=4, batch_size=4, validate_every=4))

    @jax.jit
    @jax.grad
    def gradient(params):
        return sample_losses(student, done.task.discretization(params), few).mean()

    assert done.reached < 0.7
    flat, _ = ravel_pytree(gradient(done.first.params))
    np.testing.assert_allclose(done.figures[0].grad_norm, jnp.linalg.norm(flat), rtol=1e-3)


def test_memory_does_not_grow_with_the_calls():
    wide = gaussian.noise_model(gaussian.Mixture(jnp.zeros((1, 4096)), jnp.ones(1), jnp.ones(1)), SCHEDULE)
    pairs = Pairs(jnp.zeros((42, 4096)), jnp.zeros((42, 4096)))

    def temporaries(nfe):
        task = learning.make_task(
            make_student(nfe=nfe, solver="ddim", model=wide),
            pairs,
            KEY,
            Gaps(),
            replace(LM, batch_size=42, tangents=20),
        )
        begun = jax.eval_shape(lambda: learning.begin(task, "logsnr"))
        return move.lower(task, begun).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(20) < 1.1 * temporaries(5)


BOWL = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 4.0]], np.float32)
PARAMS = {"logits": jnp.asarray([0.3, -0.2]), "shifts": jnp.asarray([0.1])}


@partial(jax.jit, static_argnums=(0, 4))
def descend_in(tries, centre, damping, floor, largest=np.inf):
    """A step in a bowl around `centre`, of a loss that is never below `floor`."""
    groups = {"logits": Group(0.1, largest), "shifts": Group(0.1)}
    free = SimpleNamespace(project=lambda params, schedule: params, groups=lambda solver: groups)
    task = learning.Task(make_student(), None, None, KEY, free, LM)

    def loss_at(params):
        offset = ravel_pytree(params)[0] - centre
        return jnp.maximum(0.5 * offset @ jnp.asarray(BOWL) @ offset, floor)

    offset = ravel_pytree(PARAMS)[0] - centre
    model = Quadratic(loss_at(PARAMS), BOWL @ offset, jnp.asarray(BOWL))
    solve = partial(solution, model, params=PARAMS, task=task)
    return descend(tries, PARAMS, model.loss, loss_at, solve, damping)


def test_a_step_solves_the_damped_equations_and_damping_falls():
    centre = np.array([0.5, 0.1, -0.3], np.float32)
    update, damping = descend_in(6, centre, jnp.asarray(0.1), 0.0)
    offset = ravel_pytree(PARAMS)[0] - centre
    expected = -np.linalg.solve(BOWL + 0.1 * np.diag(np.diag(BOWL)), BOWL @ offset)
    np.testing.assert_allclose(ravel_pytree(update)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(damping, 0.02, rtol=1e-6)
    assert float(descend_in(6, centre, jnp.asarray(1e-6), 0.0)[1]) == np.float32(1e-6)


def test_no_number_changes_by_more_than_its_group_allows():
    start = (np.array([9.0, -3.0, 5.0], np.float32), jnp.asarray(0.1), 0.0)
    (update, _), (free, _) = descend_in(6, *start, 0.25), descend_in(6, *start)
    assert float(jnp.abs(update["logits"]).max()) == pytest.approx(0.25, rel=1e-5)
    factor = 0.25 / jnp.abs(free["logits"]).max()
    chex.assert_trees_all_close(update, jax.tree.map(lambda leaf: factor * leaf, free), rtol=1e-5)


def test_where_no_damping_lowers_the_loss_nothing_moves_and_damping_has_grown_with_each_try():
    update, damping = descend_in(3, np.zeros(3, np.float32), jnp.asarray(0.1), 1e3)
    chex.assert_trees_all_equal(update, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(damping, 0.1 * 5**2, rtol=1e-6)


@pytest.mark.parametrize("name", ["steps", "batch_size", "validate_every", "tangents", "tries", "valid_batch"])
def test_a_number_out_of_its_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        LevenbergMarquardt(**{name: 0})


@pytest.mark.parametrize(
    "parametrisation", [Gaps(frozen=("logits", "shifts")), replace(COEFFICIENTS_ALONE, frozen=("coefficients",))]
)
def test_learning_nothing_is_refused(parametrisation, pairs):
    with pytest.raises(ValueError, match="nothing is learned: every group of numbers is frozen"):
        learning.fit(make_student(), pairs, KEY, parametrisation=parametrisation, learner=LM)


@pytest.mark.parametrize("loss", [losses.l1, Partial(losses.l1)], ids=["function", "partial"])
def test_a_loss_that_is_no_function_of_the_squared_error_is_refused(loss, pairs):
    with pytest.raises(ValueError, match=r"second-order steps .* need a loss that has residuals, as"):
        learning.fit(make_student(loss), pairs, KEY, learner=LM)
