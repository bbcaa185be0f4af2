"""Learning as a whole: what it reaches, what it repeats, what stops it, what it costs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import grids, learning, losses, schedules
from ld3_jax.learning import (
    Discretization,
    Gaps,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    Patience,
    SoftSurrogate,
    WithCoefficients,
    optimizers,
)
from ld3_jax.learning.student import distances, run, sample_losses
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, Teacher, draw_noise, make_pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(3)
# Everything that can move moves, and two validations in a row without better times are soon the end.
QUICK = GradientDescent(
    steps=12,
    batch_size=4,
    validate_every=1,
    patience=Patience(validations=1, decay=0.5, floors=(("logits", 0.5), ("shifts", 0.5)), visits=5),
    surrogate=SoftSurrogate(gamma=0.5, move_validation=True),
    held_out=8,
)


def start(*t, t_c=None):
    return Discretization(jnp.asarray(t), jnp.asarray(t if t_c is None else t_c))


def make_student(solver="ddim", nfe=3):
    return learning.make_student(MODEL, SCHEDULE, Solver(solver, nfe), losses.l2)


def part(pairs, first, last):
    return jax.tree.map(lambda leaf: leaf[first:last], pairs)


def mean_loss(run_with, found, pairs):
    return float(distances(run_with, found, pairs, batch_size=50).mean())


@pytest.fixture(scope="module")
def pairs():
    x_T = draw_noise(jax.random.key(0), 150, (2,))
    return make_pairs(MODEL, SCHEDULE, x_T, teacher=Teacher(Solver("dpmpp", 50, order=2), batch_size=150))


@pytest.fixture(scope="module")
def split(pairs):
    """A hundred pairs to learn from, the latter half of them to choose by, and fifty never seen before."""
    return part(pairs, 0, 100), part(pairs, 100, 150)


@pytest.fixture
def quick(pairs):
    """Short learning on eight pairs; it returns the last state, and step by step all states and figures."""

    sixteen = part(pairs, 0, 16)

    def run(key=KEY, told=None, *, pairs=sixteen, start="logsnr", state=None):
        told = [] if told is None else told
        task = learning.make_task(make_student(), pairs, key, Gaps(), QUICK)
        state = learning.begin(task, start) if state is None else state
        for step in learning.steps(task, state):
            told.append(step)
        return told[-1][0] if told else state, told

    return run


@pytest.mark.parametrize(
    ("solver", "space", "factor"),
    [("dpmpp", "lambda", 3), ("unipc", "lambda", 3), ("ipndm", "lambda", 3.5), ("ipndm", "t", 2.5)],
)
def test_learning_beats_every_standard_grid_on_unseen_noise(solver, space, factor, split):
    run_with, (known, unseen) = make_student(solver, 5), split
    learner = GradientDescent(steps=200, batch_size=50, valid_batch=50, held_out=50)
    learned = learning.fit(run_with, known, KEY, parametrisation=Gaps(space), learner=learner)
    standard = [mean_loss(run_with, learning.on_grid(name, SCHEDULE, run_with.solver), unseen) for name in grids.GRIDS]
    assert mean_loss(run_with, learned.discretization, unseen) < min(standard) / factor


def test_the_papers_own_settings_improve_on_the_start(split):
    run_with, (known, unseen) = make_student("heun", 5), split  # an odd number of calls
    rules = {"logits": optimizers.rmsprop(5e-3, 175), "shifts": optimizers.sgd(0.1 / 3, 175)}
    learner = GradientDescent(
        optimizer=optimizers.by_group(rules),
        steps=175,
        batch_size=2,
        frozen_steps=50,
        validate_every=1,
        patience=Patience(validations=5, floors=(("logits", 5e-5 / 5e-3), ("shifts", 1e-6 * 3 / 0.1))),
        surrogate=SoftSurrogate(gamma=1e-3, move_validation=True),
        held_out=50,
        valid_batch=50,
    )
    learned = learning.fit(run_with, known, KEY, parametrisation=Gaps(), learner=learner, start="logsnr")
    start = mean_loss(run_with, learning.on_grid("logsnr", SCHEDULE, run_with.solver), unseen)
    assert mean_loss(run_with, learned.discretization, unseen) < start / 4
    assert np.abs(learned.t_c - learned.t).max() > 1e-3


def test_the_same_key_repeats_every_bit_and_another_does_not(quick):
    states = [quick()[0], quick()[0], quick(jax.random.key(4))[0]]
    chex.assert_trees_all_equal(states[0], states[1], strict=True)
    assert not np.array_equal(states[0].params["logits"], states[2].params["logits"])


def test_a_second_run_compiles_nothing(quick, caplog):
    quick()
    another = jax.random.key(5)  # which compiles
    with jax.log_compiles():
        quick(another)
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(0)
    assert "Compiling" in caplog.text


def test_every_step_is_told(quick):
    _, told = quick()
    assert [int(state.step) for state, _ in told] == list(range(1, len(told) + 1))
    assert all(figures.loss.shape == () and np.isfinite(figures.loss) for _, figures in told)
    assert all(isinstance(figure, np.ndarray | np.generic) for _, figures in told for figure in figures)
    assert {float(figures.moved) for _, figures in told} != {0.0}


@pytest.mark.parametrize("step", [1, 2, 5, -1])
def test_going_on_from_any_step_ends_as_if_never_interrupted(step, quick):
    state, told = quick()
    resumed, told_again = quick(state=told[step - 1 if step > 0 else -1][0])
    chex.assert_trees_all_equal(resumed, state, strict=True)
    chex.assert_trees_all_equal(told_again, told[step:] if step > 0 else [], strict=True)


def test_the_start_is_kept_and_learning_ends_where_nothing_beats_it(quick, pairs):
    found = learning.on_grid("edm", SCHEDULE, Solver("ddim", 3))
    known = part(pairs, 0, 16)
    known = known._replace(x_0=known.x_0.at[8:].set(run(make_student(), found, known.x_T[8:])))
    state, told = quick(start="edm", pairs=known)
    task = learning.make_task(make_student(), known, KEY, Gaps(), QUICK)
    chex.assert_trees_all_equal(state.best, learning.begin(task, "edm").params)
    assert (len(told), state.step, state.learner.floor_visits, state.done) == (5, 5, 5, True)
    again, told_again = quick(pairs=known, state=state)
    chex.assert_trees_all_equal(again, state, strict=True)
    assert told_again == []


def test_a_loss_that_is_no_number_stops_learning_and_names_the_step(quick, pairs):
    first = []
    for sample in range(8):
        # So far out, the mixture's shares are 0/0.
        broken, told = part(pairs, 0, 16)._replace(x_T=pairs.x_T[:16].at[sample].set(1e30)), []
        with pytest.raises(FloatingPointError, match="the loss is nan at step") as caught:
            quick(pairs=broken, told=told)
        first.append(int(str(caught.value).split()[-1]))
        assert [int(state.step) for state, _ in told] == list(range(1, first[-1]))
        assert all(np.isfinite(figures.loss) for _, figures in told)
    assert sorted(first) == [1] * 4 + [2] * 4  # each sample is in one of a round's two batches


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (GradientDescent(batch_size=9, held_out=8), r"at most the 8 training pairs, got 9"),
        (LevenbergMarquardt(batch_size=17), r"at most the 16 training pairs, got 17"),
        (GradientDescent(held_out=16), "less than the 16 pairs, got 16"),
    ],
)
def test_more_pairs_than_there_are_are_refused(learner, message, pairs):
    with pytest.raises(ValueError, match=message):
        learning.fit(make_student(), part(pairs, 0, 16), KEY, learner=learner)


SHORT = GradientDescent(steps=4, batch_size=8, validate_every=2)


def test_learning_goes_on_from_what_was_learned(pairs):
    run_with, known = make_student(), part(pairs, 0, 16)
    first = learning.fit(run_with, known, KEY, parametrisation=Gaps(), learner=SHORT, start="edm")
    again = learning.fit(
        run_with, known, KEY, parametrisation=WithCoefficients(), learner=SHORT, start=first.discretization
    )
    assert again.losses["valid"]["learned"] < again.losses["valid"]["start"]
    starts = [(Gaps(), first), (Gaps("t"), first), (WithCoefficients(), first), (WithCoefficients(), again)]
    for parametrisation, start in starts:
        task = learning.make_task(run_with, known, KEY, parametrisation, SHORT)
        loss = learning.begin(task, start.discretization).start_loss
        np.testing.assert_allclose(loss, start.losses["valid"]["learned"], rtol=1e-3)
    with pytest.raises(ValueError, match="changed coefficients, which gaps and shifts cannot hold"):
        learning.fit(run_with, known, KEY, parametrisation=Gaps(), learner=SHORT, start=again.discretization)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("optimal-flux", "these noise levels are of a flow"),  # a published grid, for other models
        ("magic", "start must be a Discretization, 'best' or a grid .*, got 'magic'"),
        (start(*grids.grid("edm", SCHEDULE, 5)), "has 4 times"),
        (start(80.0, 10.0, 1.0, 0.002), "t must run from 1 to 0.001, .* got 80 to 0.002"),  # another's
        (start(0.5, 0.4, 0.2, 0.001), "t must run from 1 to 0.001, .* got 0.5 to 0.001"),
        (start(1.0, 0.4, 0.2, 0.0), "t must run from 1 to 0.001, .* got 1 to 0"),
        (start(0.001, 0.2, 0.4, 1.0), "t must descend"),
        (start(1.0, 0.4, 0.001, 0.001), "t must descend"),
        (start(1.0, float("nan"), 0.2, 0.001), "t must be finite"),
        (start(1.0, 0.4, 0.2, 0.001, t_c=(1.0, 0.1, 0.05, 0.001)), "t_c must lie between the neighbours of its t"),
        (start(1.0, 0.4, 0.2, 0.001, t_c=(1.0, 0.2, 0.4, 0.001)), "t_c must descend"),
        (start(1.0, 0.4, 0.2, 0.001, t_c=(1.0, 0.4, 0.2, -0.2)), "t_c must lie"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start, message, pairs):
    with pytest.raises(ValueError, match=message):
        learning.fit(make_student(), part(pairs, 0, 16), KEY, learner=SHORT, start=start)


def test_unlike_numbers_of_states_and_samples_are_refused(pairs):
    known = part(pairs, 0, 16)
    with pytest.raises(ValueError, match=r"pairs must share .*x_T='float32\[16, 2\]', x_0='float32\[8, 2\]'"):
        learning.fit(make_student(), known._replace(x_0=known.x_0[:8]), KEY, learner=SHORT)


def test_network_calls_count_every_validation(pairs):
    known, student = part(pairs, 0, 16), make_student()
    learner = GaussNewton(steps=9, batch_size=4, validate_every=4, valid_batch=16)
    task = learning.make_task(student, known, KEY, Gaps(), learner)
    state = learning.begin(task, "edm")
    steps = 9 * 4 * learner.calls(task, state.params)
    validations = 4 * 16 * student.solver.nfe  # of the start, and after steps 4, 8 and 9
    assert learning.learn(task, "edm").network_calls == steps + validations


def test_network_calls_count_the_steps_of_validation_noise(pairs):
    known, student = part(pairs, 0, 16), make_student()
    surrogate = SoftSurrogate(gamma=0.5, move_validation=True)
    learner = GradientDescent(steps=8, batch_size=4, validate_every=8, surrogate=surrogate, held_out=8)
    task = learning.make_task(student, known, KEY, Gaps(), learner)
    nfe, each = student.solver.nfe, learner.calls(task, learning.begin(task, "edm").params)
    rounds = 8 // 2  # of the two batches of the 8 training pairs: validation noise moves after each, and is judged
    expected = 8 * 4 * each + 8 * nfe * 2 + rounds * 8 * (each + nfe)  # validations of the start and after step 8
    assert learning.learn(task, "edm").network_calls == expected


def _tree_model(variance, x, t, cond):
    """Exact for Gaussian data."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return jax.tree.map(lambda leaf: sigma * leaf / (alpha**2 * variance + sigma**2), x)


def _tree_loss(x, y):
    each = jax.tree.map(lambda x, y: jnp.mean((x - y) ** 2, -1), x, y)
    return each["position"] + each["angle"]


def test_states_may_be_pytrees():
    solver = Solver("ddim", 3)
    run_with = learning.make_student(Partial(_tree_model, jnp.float32(0.04)), SCHEDULE, solver, _tree_loss)
    x_T = {"position": jax.random.normal(KEY, (8, 3)), "angle": jax.random.normal(jax.random.key(4), (8, 2))}
    x_0 = run(run_with, learning.on_grid("edm", SCHEDULE, solver), x_T)
    learner = GradientDescent(steps=20, batch_size=4, validate_every=5, surrogate=SoftSurrogate(gamma=0.5))
    task = learning.make_task(run_with, Pairs(x_T, x_0), KEY, Gaps(), learner)
    *_, (state, _) = learning.steps(task, learning.begin(task, "logsnr"))
    noise = state.learner.noise
    assert state.best_loss < 0.5 * state.start_loss
    assert jax.tree.map(jnp.shape, noise) == {"position": (8, 3), "angle": (8, 2)}
    assert all(np.any(noise[name] != x_T[name]) for name in x_T)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _perceptron(weights, x, t, cond):
    hidden = x @ weights["in"] + t
    for layer in weights["hidden"]:
        hidden = jax.nn.gelu(hidden @ layer)
    return hidden @ weights["out"]


def test_memory_holds_the_states_and_no_activations():
    width, batch, size = 512, 64, 8
    layers = {"in": array(size, width), "hidden": [array(width, width)] * 4, "out": array(width, size)}
    pairs = Pairs(array(batch, size), array(batch, size))

    def used(nfe, remat):
        run_with = learning.make_student(Partial(_perceptron, layers), SCHEDULE, Solver("ddim", nfe))

        def loss(params, run_with, pairs):
            found = Gaps().discretization(params, SCHEDULE, run_with.solver)
            return sample_losses(run_with, found, pairs, remat=remat).mean()

        params = {"logits": array(nfe), "shifts": array(nfe - 1)}
        compiled = jax.jit(jax.grad(loss)).lower(params, run_with, pairs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long, without = used(5, remat=True), used(40, remat=True), used(20, remat=False)
    stored = 35 * 3 * 4 * batch * size  # a state, its base, one prediction
    assert long < 0.3 * without
    assert long - short < 1.1 * stored


@pytest.mark.parametrize("where", ["x_T", "x_0"])
def test_pairs_that_are_not_finite_are_refused(where, pairs):
    some = part(pairs, 0, 16)
    broken = some._replace(**{where: getattr(some, where).at[13].set(jnp.nan)})
    with pytest.raises(FloatingPointError, match="the pairs to learn from: 1 of 16 are not finite, namely number 13"):
        learning.fit(make_student(), broken, KEY, learner=SHORT)


def test_without_a_finite_validation_nothing_is_described(pairs):
    task = learning.make_task(make_student(), part(pairs, 0, 16), KEY, Gaps(), SHORT)
    state = learning.begin(task, "logsnr")._replace(best_loss=jnp.float32(jnp.inf))
    with pytest.raises(FloatingPointError, match="no validation had a finite loss"):
        learning.describe(task, state)


@pytest.mark.parametrize(("solver", "nfe"), [("euler", 1), ("heun", 2)])
def test_one_step_learns_coefficients_by_gradient_descent_alone(solver, nfe, pairs):
    one, some = make_student(solver, nfe), part(pairs, 0, 16)
    learned = learning.fit(one, some, KEY, learner=SHORT, start="logsnr")
    assert learned.losses["valid"]["learned"] <= learned.losses["valid"]["start"]
    for learner in (GaussNewton(), LevenbergMarquardt(batch_size=16)):
        with pytest.raises(ValueError, match=f"need a solver of at least 2 steps, got {solver}"):
            learning.fit(one, some, KEY, learner=learner)
    with pytest.raises(ValueError, match=r"nothing is learned: .* a single step has no times"):
        learning.fit(one, some, KEY, parametrisation=Gaps(), learner=SHORT)
