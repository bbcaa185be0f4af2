"""Learning by Gauss-Newton: exact on a quadratic, unbiased averages, a rate that rises and falls, refusals."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ld3_jax import learning, losses, schedules
from ld3_jax.learning import Gaps, GaussNewton, GradientDescent, Group, WithCoefficients
from ld3_jax.learning.second_order import Quadratic, quadratic_model, solution
from ld3_jax.learning.task import batch_indices, move
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, Teacher, draw_noise, make_pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def pairs():
    teacher = Teacher(Solver("unipc", 30), batch_size=120)
    return make_pairs(MODEL, SCHEDULE, draw_noise(jax.random.key(0), 120, (2,)), teacher=teacher)


def make_task(pairs, parametrisation, learner, solver="dpmpp"):
    student = learning.make_student(MODEL, SCHEDULE, Solver(solver, 4), losses.l2)
    return learning.make_task(student, pairs, KEY, parametrisation, learner)


def test_states_may_be_pytrees(pairs):
    def halves(x):
        return {"first": x[:, 0], "second": x[:, 1:]}

    def network(x, t, cond):
        eps = MODEL(jnp.column_stack([x["first"], x["second"]]), t, cond)
        return halves(eps)

    def model_of(network, pairs):
        student = learning.make_student(network, SCHEDULE, Solver("ddim", 2))
        task = learning.make_task(student, pairs, KEY, Gaps(), GaussNewton())
        params = learning.begin(task, "logsnr").params
        return jax.jit(quadratic_model, static_argnums=3)(task, params, task.train, 40)

    of_pytrees = model_of(network, pairs._replace(x_T=halves(pairs.x_T), x_0=halves(pairs.x_0)))
    chex.assert_trees_all_close(of_pytrees, model_of(MODEL, pairs), rtol=1e-3)


@pytest.mark.parametrize("solver", ["ipndm"])
def test_it_gets_further_than_adam_on_fewer_network_calls(solver, pairs):
    known, unseen = (jax.tree.map(lambda leaf, part=part: leaf[part], pairs) for part in (slice(60), slice(60, None)))

    def reached(learner):
        task = make_task(known, Gaps(), learner, solver)
        ended = learning.learn(task, "logsnr")
        learned = learning.describe(task, ended.state)
        return learned.distances(task.student, unseen, batch_size=60).mean(), ended.network_calls

    own, calls = reached(GaussNewton(steps=30, batch_size=30, valid_batch=60))
    other, more_calls = reached(GradientDescent(steps=60, batch_size=30, valid_batch=60))
    assert own < other
    assert calls < more_calls


def test_averages_are_those_of_the_batches_and_the_rate_rises_and_falls(pairs):
    settings = {"momentum": 0.4, "memory": 0.8, "damping": 1.0, "ridge": 0.5}
    learner = GaussNewton(steps=3, batch_size=30, validate_every=3, **settings)
    gaps = Gaps()
    object.__setattr__(gaps, "max_shift", 1e3)  # so that no number reaches its bound
    task = make_task(pairs, WithCoefficients(gaps), learner, "ddim")
    states = [learning.begin(task, "edm")]
    model = jax.jit(lambda params, pairs: quadratic_model(task, params, pairs, learner.tangents))
    models = []
    for step in range(3):
        indices = batch_indices(task, jnp.int32(step))
        models.append(model(states[-1].params, jax.tree.map(lambda leaf, i=indices: leaf[i], task.train)))
        states.append(move(task, states[-1])[0])

    def average(values, decay):
        weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

    for k in range(3):
        expected = models[k]._replace(
            gradient=average([m.gradient for m in models[: k + 1]], 0.4),
            matrix=average([m.matrix for m in models[: k + 1]], 0.8),
        )
        ridge = 0.5 * jnp.diag(expected.matrix)
        gone = ravel_pytree(states[k].params)[0] - ravel_pytree(states[0].params)[0]
        expected = expected._replace(
            gradient=expected.gradient + ridge * gone, matrix=expected.matrix + jnp.diag(ridge)
        )
        rate = 0.7 * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * k / 3))) * (1 - 0.8 ** (k + 1))
        step = solution(expected, jnp.asarray(1.0), states[k].params, task)
        moved = jax.tree.map(lambda new, old: new - old, states[k + 1].params, states[k].params)
        np.testing.assert_allclose(ravel_pytree(moved)[0], rate * ravel_pytree(step)[0], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["steps", "batch_size", "validate_every", "tangents", "valid_batch"])
def test_a_number_out_of_its_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        GaussNewton(**{name: 0})


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 0.0},
        {"rate": 1.5},
        {"damping": -1.0},
        {"damping": float("nan")},
        {"momentum": 1.0},
        {"memory": -0.1},
        {"ridge": -1.0},
    ],
)
def test_rates_out_of_their_range_are_refused(settings):
    (name, value), *_ = settings.items()
    with pytest.raises(ValueError, match=rf"{name}.* got.* {value}"):
        GaussNewton(**settings)


def test_a_loss_that_is_no_function_of_squares_is_refused(pairs):
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 4), losses.l1)
    with pytest.raises(ValueError, match=r"second-order steps .* need a loss that has residuals, as"):
        learning.fit(student, pairs, KEY)


def test_numbers_stay_within_their_bounds_and_the_others_are_solved_for_again():
    params = {"shifts": jnp.zeros(3)}
    matrix = jnp.asarray([[2.0, 0.2, 0.0], [0.2, 1.0, 0.3], [0.0, 0.3, 4.0]])
    model = Quadratic(jnp.zeros(()), jnp.asarray([-4.0, 0.0, 1.0]), matrix)

    def project(params, schedule):
        return {"shifts": jnp.clip(params["shifts"], -0.5, 0.5)}

    bounded = SimpleNamespace(project=project, groups=lambda solver: {"shifts": Group(0.1)})
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 4))
    task = learning.Task(student, None, None, KEY, bounded, GaussNewton())
    step = solution(model, jnp.zeros(()), params, task)["shifts"]
    # The first one wants to go to 2 and stops at 0.5; with it there, the others are at their least.
    others = -np.linalg.solve(matrix[1:, 1:], model.gradient[1:] + matrix[1:, 0] * 0.5)
    np.testing.assert_allclose(step, [0.5, *others], rtol=1e-5)


def test_rounding_of_a_number_is_no_bound():
    params = {"shifts": jnp.full(2, 1e3)}
    model = Quadratic(jnp.zeros(()), jnp.full(2, -1e-3), jnp.eye(2))
    free = SimpleNamespace(project=lambda params, schedule: params, groups=lambda solver: {"shifts": Group(0.1)})
    student = learning.make_student(MODEL, SCHEDULE, Solver("dpmpp", 4))
    step = solution(model, jnp.zeros(()), params, learning.Task(student, None, None, KEY, free, GaussNewton()))
    np.testing.assert_allclose(step["shifts"], 1e-3, rtol=1e-6)  # (1000 + 0.001) - 1000 in float32 is 0.00098


def _traced(network, solver):
    """The shapes of a step: nothing is compiled."""
    x = jnp.ones((10, 2), jnp.float32)
    student = learning.make_student(network, SCHEDULE, Solver(solver, 4), losses.l2)
    task = learning.make_task(student, Pairs(x, x), KEY, WithCoefficients(), GaussNewton())
    state = jax.eval_shape(lambda: learning.begin(task, "logsnr"))
    return jax.eval_shape(move, task, state)[0].params["logits"].dtype


@pytest.mark.parametrize(("solver", "dtype"), [("ipndm", "bfloat16"), ("heun", "float16")])
def test_networks_may_answer_in_fewer_digits(solver, dtype):
    assert _traced(lambda x, t, cond: (x * t).astype(dtype), solver) == jnp.float32


@pytest.mark.parametrize("solver", ["dpmpp", "ipndm"])
def test_float32_pairs_serve_in_double_precision(solver, float64):
    assert _traced(lambda x, t, cond: (x * t).astype(jnp.float32), solver) == jnp.float64


def test_a_step_needs_no_promotion_of_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        assert _traced(lambda x, t, cond: x * t, "unipc") == jnp.float32


def test_a_loss_below_zero_is_refused_before_the_first_step(pairs):
    student = learning.make_student(MODEL, SCHEDULE, Solver("ddim", 2), lambda x, y: -losses.l2(x, y))
    task = learning.make_task(student, pairs, KEY, Gaps(), GradientDescent())
    with pytest.raises(ValueError, match=r"a loss must be at least 0, .* got -"):
        learning.begin(task, "logsnr")
