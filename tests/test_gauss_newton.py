"""Learning by Levenberg-Marquardt: the quadratic model, steps that never make it worse, memory, refusals."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from ld3_jax import gauss_newton, losses, metrics, schedules, solvers, steps, timesteps, train
from ld3_jax.learning import Learning, discretization
from ld3_jax.networks import gaussian
from ld3_jax.optimizers import levenberg_marquardt
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.vp_linear()
LM = Learning(learner="lm", steps=5, batch_size=20, validate_every=1)
EVERYTHING = ("times", "shifts", "coefficients")


def make_student(loss=losses.l2, nfe=4, solver="dpmpp"):
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    return metrics.make_student(model, SCHEDULE, solvers.Method(solver, nfe), loss)


def make_pairs(count=20, seed=0):
    x_T = jax.random.normal(jax.random.key(seed), (count, 2))
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    t = timesteps.grid("logsnr", SCHEDULE, 40)
    return Pairs(x_T, solvers.sample(model, SCHEDULE, x_T, t, solver="unipc"))


def start(student, learning):
    return train.starts(student, ["logsnr"], 1, jax.random.key(0), learning)[0]


@pytest.mark.parametrize(
    ("what", "loss"), [(("times", "shifts"), losses.l2), (EVERYTHING, losses.rmse)], ids=["times", "everything"]
)
def test_a_few_steps_go_far_below_the_start(what, loss):
    learning = Learning(what=what, learner="lm", steps=6, batch_size=20, validate_every=1)
    student, pairs = make_student(loss), make_pairs()
    state = train.fit(student, pairs, pairs, jax.random.key(1), start=start(student, learning), learning=learning)
    assert state.best_loss < 0.5 * state.start_loss
    t, t_c, change = discretization(state.best, student, learning)
    loss = metrics.distances(student, t, t_c, pairs, change).mean()
    np.testing.assert_allclose(loss, state.best_loss, rtol=1e-4)


def test_coefficients_go_below_times_alone():
    student, pairs = make_student(), make_pairs()
    reached = []
    for what in (("times", "shifts"), EVERYTHING):
        learning = Learning(what=what, learner="lm", steps=10, batch_size=20, validate_every=1)
        state = train.fit(student, pairs, pairs, jax.random.key(1), start=start(student, learning), learning=learning)
        reached.append(float(state.best_loss))
    assert reached[1] < 0.7 * reached[0]


def test_what_is_not_learned_stays():
    learning = Learning(what=("coefficients",), learner="lm", steps=2, batch_size=20, validate_every=1)
    student, pairs = make_student(), make_pairs()
    begin = start(student, learning)
    state = train.fit(student, pairs, pairs, jax.random.key(1), start=begin, learning=learning)
    np.testing.assert_array_equal(state.best.logits, begin.logits)
    np.testing.assert_array_equal(state.best.shifts, begin.shifts)
    assert jnp.abs(state.best.coefficients.predict).max() > 1e-3


@pytest.mark.parametrize("loss", [losses.l2, losses.rmse], ids=["l2", "rmse"])
def test_the_model_has_the_gradient_and_for_small_residuals_the_curvature_of_the_loss(loss, float64):
    student, pairs = make_student(loss), make_pairs()
    params = start(student, Learning(what=EVERYTHING))
    learning = Learning(what=EVERYTHING, learner="lm", batch_size=20)
    flat, unravel = ravel_pytree(params)

    def mean_loss(flat, targets):
        t, t_c, change = discretization(unravel(flat), student, learning)
        return metrics.sample_losses(student, t, t_c, pairs._replace(x_0=targets), change).mean()

    quadratic_model = jax.jit(lambda pairs: gauss_newton._quadratic_model(student, params, learning, pairs))
    model = quadratic_model(pairs)
    gradient = jax.jit(jax.grad(mean_loss))
    np.testing.assert_allclose(2 * model.gradient.mean(0), gradient(flat, pairs.x_0), rtol=1e-6, atol=1e-9)
    if loss is losses.l2:  # where the residuals vanish, nothing is left out of the Hessian
        t, t_c, _ = discretization(params, student, learning)
        own = metrics.run(student, t, t_c, pairs)
        exact = quadratic_model(pairs._replace(x_0=own))
        steps = 1e-4 * np.eye(len(flat))
        hessian = [(gradient(flat + step, own) - gradient(flat - step, own)) / 2e-4 for step in steps]
        np.testing.assert_allclose(2 * exact.matrix.mean(0), hessian, atol=1e-6 * np.abs(hessian).max())


@Partial
def picture(x):
    """States in the plane as images of 31 x 31 pixels."""
    waves = jnp.sin(jnp.arange(2.0 * 31 * 31 * 3)).reshape(2, 31, 31, 3)
    return jnp.tanh(jnp.einsum("nd,dhwc->nhwc", x, waves))


def test_lpips_of_decoded_samples_is_learned_in_a_few_steps():
    student = make_student(losses.lpips("alex"))._replace(decode=picture)
    states = make_pairs(4)
    pairs = states._replace(x_0=picture(states.x_0))
    learning = Learning(learner="lm", steps=4, batch_size=4, validate_every=1)
    params = start(student, learning)

    def mean_loss(params):
        return metrics.sample_losses(student, *discretization(params, student, learning)[:2], pairs).mean()

    told = []
    state = train.fit(
        student,
        pairs,
        pairs,
        jax.random.key(1),
        start=params,
        learning=learning,
        on_step=lambda state, figures: told.append(figures),
    )
    assert state.best_loss < 0.7 * state.start_loss
    gradient, _ = ravel_pytree(jax.jit(jax.grad(mean_loss))(params))
    np.testing.assert_allclose(told[0].grad_norm, jnp.linalg.norm(gradient), rtol=1e-3)


def test_the_batch_s_loss_never_rises():
    student, pairs = make_student(losses.rmse, solver="ipndm"), make_pairs()
    seen = []
    learning = Learning(what=EVERYTHING, learner="lm", steps=8, batch_size=20, validate_every=1)
    train.fit(
        student,
        pairs,
        pairs,
        jax.random.key(1),
        start=start(student, learning),
        learning=learning,
        on_step=lambda state, figures: seen.append(float(figures.loss)),
    )
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(seen))
    assert seen[-1] < seen[0]


def test_memory_does_not_grow_with_the_calls():
    wide = gaussian.Mixture(jnp.zeros((1, 4096)), jnp.ones(1), jnp.ones(1))
    pairs = Pairs(jnp.zeros((42, 4096)), jnp.zeros((42, 4096)))
    learning = replace(LM, batch_size=42)

    def temporaries(nfe):
        student = make_student(nfe=nfe)._replace(model=gaussian.noise_model(wide, SCHEDULE))
        params = start(student, learning)
        state = steps.init_state(student, pairs, pairs, params, levenberg_marquardt(), learning)
        lowered = gauss_newton.gauss_newton_step.lower(
            state, student, pairs, jax.random.key(0), optimizer=levenberg_marquardt(), learning=learning
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(20) < 1.1 * temporaries(5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"learner": "newton"}, r"learner must be one of \['lm', 'optax'\], got 'newton'"),
        ({"learner": "lm", "gamma": 0.1}, "the soft surrogate needs the learner 'optax'"),
        ({"what": ("weights",)}, r"what must be some of \['times', 'shifts', 'coefficients'\], got \['weights'\]"),
        ({"what": ()}, "what must be some of"),
        ({"history": 0}, "history must be at least 1, or None for all, got 0"),
    ],
)
def test_a_bad_choice_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        Learning(**choice)


def test_a_loss_that_is_no_function_of_the_squared_error_is_refused():
    student, pairs = make_student(losses.l1), make_pairs()
    with pytest.raises(ValueError, match="needs a loss that is a function of squares"):
        train.fit(student, pairs, pairs, jax.random.key(1), start=start(student, LM), learning=LM)
