"""Learning as a whole: what it reaches, what it repeats, what stops it, what it costs, where it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import metrics, optimizers, schedules, solvers, steps, teacher, timesteps, train
from ld3_jax.networks import gaussian
from ld3_jax.steps import Learning
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.vp_linear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(3)
# Everything that can move moves, and two validations in a row without a better schedule are soon the end.
QUICK = Learning(
    steps=12,
    batch_size=4,
    validate_every=1,
    patience=1,
    decay=0.5,
    floors=(0.5, 0.5),
    floor_visits=5,
    gamma=0.5,
    move_validation=True,
)


def make_student(solver="ddim", nfe=3):
    return metrics.make_student(MODEL, SCHEDULE, solvers.Method(solver, nfe))


def grid_params(name="logsnr", n=3, space="lambda"):
    t = timesteps.grid(name, SCHEDULE, n)
    return timesteps.to_params(t, t, SCHEDULE, space)


def part(pairs, first, last):
    return jax.tree.map(lambda leaf: leaf[first:last], pairs)


def assert_identical(state, other):
    jax.tree.map(np.testing.assert_array_equal, state, other)


def held_out_loss(student, params, test, space="lambda"):
    t = timesteps.from_params(params, SCHEDULE, space)
    return float(metrics.distances(student, *t, test, batch_size=50).mean())


@pytest.fixture(scope="module")
def pairs():
    t, method = timesteps.grid("logsnr", SCHEDULE, 50), solvers.Method("dpmpp", 50, order=2)
    return teacher.make_pairs(MODEL, SCHEDULE, method, t, jax.random.key(0), 150, (2,), batch_size=150)


@pytest.fixture(scope="module")
def split(pairs):
    """Fifty pairs each to learn from, to choose by, and never seen before."""
    return part(pairs, 0, 50), part(pairs, 50, 100), part(pairs, 100, 150)


@pytest.fixture
def quick(pairs):
    """Short learning on eight pairs; it returns the last state and, step by step, what `on_step` was told."""

    def run(key=KEY, told=None, **changes):
        told = [] if told is None else told
        arguments = {"train": part(pairs, 0, 8), "valid": part(pairs, 8, 16), "start": grid_params(), "learning": QUICK}
        state = train.fit(make_student(), key=key, on_step=lambda *args: told.append(args), **(arguments | changes))
        return state, told

    return run


@pytest.mark.parametrize(
    ("solver", "space", "factor"),
    [("dpmpp", "lambda", 3), ("unipc", "lambda", 3), ("ipndm", "lambda", 3.5), ("ipndm", "t", 2.5)],
)
def test_learning_beats_every_hand_made_grid_on_unseen_noise(solver, space, factor, split):
    student = make_student(solver, 5)
    learning = Learning(steps=200, batch_size=50, space=space, valid_batch=50)
    state = train.fit(student, *split[:2], KEY, learning=learning)
    ranking = train.rank_grids(student, split[2])
    loss = held_out_loss(student, state.best, split[2], space)
    assert loss < ranking[0][1] / factor
    assert state.best_loss < state.start_loss / factor
    first = train.rank_grids(student, split[0])[0][0]
    start = held_out_loss(student, grid_params(first, student.method.n_steps, space), split[1], space)
    np.testing.assert_allclose(state.start_loss, start, rtol=1e-4)


def test_the_papers_own_settings_improve_on_the_start(split):
    student, start = make_student("heun", 5), grid_params("logsnr", 3)  # an odd number of calls
    optimizer = optimizers.make_optimizer("rmsprop", 5e-3, "sgd", 0.1 / 3, 175)
    learning = Learning(
        steps=175,
        batch_size=2,
        frozen_steps=50,
        validate_every=1,
        patience=5,
        floors=(5e-5 / 5e-3, 1e-6 * 3 / 0.1),
        gamma=1e-3,
        move_validation=True,
        valid_batch=50,
    )
    state = train.fit(student, *split[:2], KEY, start=start, optimizer=optimizer, learning=learning)
    losses = [held_out_loss(student, params, split[2]) for params in (start, state.best)]
    assert losses[1] < losses[0] / 4
    assert np.abs(state.best.shifts).max() > 0


def test_grids_are_ranked_by_their_mean_losses(split):
    student = make_student()
    ranking = train.rank_grids(student, split[0])
    expected = {name: held_out_loss(student, grid_params(name), split[0]) for name in timesteps.GRIDS}
    assert [name for name, _ in ranking] == sorted(expected, key=expected.get)
    np.testing.assert_allclose([loss for _, loss in ranking], sorted(expected.values()), rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("space", ["lambda", "t"])
def test_starts_are_the_named_grids_then_perturbed_ones(count, space):
    found = train.starts(make_student(), ["edm", "logsnr"], count, KEY, Learning(space=space))
    named = [grid_params(name, space=space) for name in ("edm", "logsnr")]
    assert len(found) == count
    assert_identical(found[:2], named[:count])
    assert len({start.logits.tobytes() for start in map(jax.device_get, found)}) == count
    for start in found[2:]:
        assert 0 < np.abs(start.logits - named[0].logits).max() < 1.5
        assert_identical(start.shifts, named[0].shifts)


def test_the_same_key_repeats_every_bit_and_another_does_not(quick):
    states = [quick()[0], quick()[0], quick(jax.random.key(4))[0]]
    assert_identical(states[0], states[1])
    assert not np.array_equal(states[0].params.logits, states[2].params.logits)


def test_a_second_run_compiles_nothing(quick, caplog):
    quick()
    with jax.log_compiles():
        quick(jax.random.key(5))
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(0)
    assert "Compiling" in caplog.text


def test_on_step_is_told_every_step(quick):
    state, told = quick()
    assert [int(at.step) for at, _ in told] == list(range(1, len(told) + 1))
    assert_identical(told[-1][0], state)
    assert all(figures.loss.shape == () and np.isfinite(figures.loss) for _, figures in told)
    assert {float(figures.moved) for _, figures in told} != {0.0}


@pytest.mark.parametrize("step", [1, 2, 5, -1])
def test_going_on_from_any_step_ends_as_if_never_interrupted(step, quick):
    state, told = quick()
    resumed, told_again = quick(state=told[step - 1 if step > 0 else -1][0])
    assert_identical(resumed, state)
    assert_identical(told_again, told[step:] if step > 0 else [])


def test_the_start_is_kept_and_learning_ends_where_nothing_beats_it(quick, pairs):
    start = grid_params("edm")
    valid = part(pairs, 8, 16)
    valid = valid._replace(x_0=metrics.run(make_student(), *timesteps.from_params(start, SCHEDULE), valid))
    state, told = quick(start=start, valid=valid)
    assert_identical(state.best, start)
    assert (len(told), state.step, state.floor_visits, state.done) == (5, 5, 5, True)
    again, told_again = quick(valid=valid, state=state)
    assert_identical(again, state)
    assert told_again == []


def test_a_loss_that_is_no_number_stops_learning_and_names_the_step(quick, pairs):
    first = []
    for sample in range(8):
        # So far out, the mixture's shares are 0/0.
        broken, told = part(pairs, 0, 8)._replace(x_T=pairs.x_T[:8].at[sample].set(1e30)), []
        with pytest.raises(FloatingPointError, match="the loss is nan at step") as caught:
            quick(train=broken, told=told)
        first.append(int(str(caught.value).split()[-1]))
        assert [int(state.step) for state, _ in told] == list(range(1, first[-1]))
        assert all(np.isfinite(figures.loss) for _, figures in told)
    assert sorted(first) == [1] * 4 + [2] * 4  # each sample is in one of a round's two batches


def test_a_batch_larger_than_the_pairs_is_refused(quick):
    with pytest.raises(ValueError, match=r"at most the 8 training pairs .* got 9"):
        quick(learning=Learning(batch_size=9))


def _tree_model(variance, x, t, cond):
    """Exact for Gaussian data."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return jax.tree.map(lambda leaf: sigma * leaf / (alpha**2 * variance + sigma**2), x)


def _tree_loss(x, y):
    each = jax.tree.map(lambda x, y: jnp.mean((x - y) ** 2, -1), x, y)
    return each["position"] + each["angle"]


def test_states_may_be_pytrees():
    method, learning = solvers.Method("ddim", 3), Learning(steps=20, batch_size=4, validate_every=5, gamma=0.5)
    student = metrics.make_student(Partial(_tree_model, jnp.float32(0.04)), SCHEDULE, method, _tree_loss)
    x_T = {"position": jax.random.normal(KEY, (8, 3)), "angle": jax.random.normal(jax.random.key(4), (8, 2))}
    t = timesteps.grid("edm", SCHEDULE, 3)
    pairs = Pairs(x_T, metrics.run(student, t, t, Pairs(x_T, x_T)))
    state = train.fit(student, pairs, pairs, KEY, start=grid_params(), learning=learning)
    assert state.best_loss < 0.5 * state.start_loss
    assert jax.tree.map(jnp.shape, state.noise) == {"position": (8, 3), "angle": (8, 2)}
    assert all(np.any(state.noise[name] != x_T[name]) for name in x_T)


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
        student = metrics.make_student(Partial(_perceptron, layers), SCHEDULE, solvers.Method("ddim", nfe))

        def loss(params, student, pairs):
            t = timesteps.from_params(params, SCHEDULE)
            return metrics.sample_losses(student, *t, pairs, remat=remat).mean()

        params = timesteps.TimestepParams(array(nfe), array(nfe - 1))
        compiled = jax.jit(jax.grad(loss)).lower(params, student, pairs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long, without = used(5, remat=True), used(40, remat=True), used(20, remat=False)
    stored = 35 * 3 * 4 * batch * size  # a state, its base, one prediction
    assert long < 0.3 * without
    assert long - short < 1.1 * stored


@pytest.fixture(scope="module")
def devices():
    """What `on_eight_devices` printed, in a process that has eight."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(Path(train.__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}
    command = [sys.executable, "-c", "import test_train; test_train.on_eight_devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def on_eight_devices():
    """Learn on one device and on eight, and print what differs."""
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    student, t = make_student(), timesteps.grid("logsnr", SCHEDULE, 20)
    learning, optimizer = Learning(steps=20, batch_size=8), optimizers.make_optimizer("adam", 0.05, "adam", 0.01, 20)
    integrate, spread_over = teacher._integrate, []

    def watched(*args):
        spread_over.append(len(args[4].sharding.device_set) if not args[4].is_fully_replicated else 1)
        return integrate(*args)

    teacher._integrate = watched
    results = []
    for where in (None, sharding):
        pairs = teacher.make_pairs(
            MODEL, SCHEDULE, solvers.Method("ddim", 20), t, KEY, 20, (2,), batch_size=16, sharding=where
        )
        arguments = (student, part(pairs, 0, 10), part(pairs, 10, 20), KEY)
        keywords = {"start": grid_params(), "optimizer": optimizer, "learning": learning, "sharding": where}
        results.append((pairs, train.fit(*arguments, **keywords)))
    (pairs, state), (other_pairs, other) = results
    keywords = {"optimizer": optimizer, "learning": learning, "sharding": sharding}
    placed = teacher.replicate((other, student, part(other_pairs, 0, 10)), sharding)
    text = steps.train_step.lower(*placed, KEY, **keywords).compile().as_text()
    try:
        train.fit(*arguments, start=grid_params(), learning=Learning(batch_size=6), sharding=sharding)
        refusal = ""
    except ValueError as error:
        refusal = str(error)

    def difference(one, another):
        leaves = zip(jax.tree.leaves(one), jax.tree.leaves(another), strict=True)
        return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in leaves)

    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "pairs": difference(pairs[:2], other_pairs[:2]),
                "schedule": difference(state.best, other.best),
                "moved": difference(state.best, grid_params()),
                "teacher": spread_over,
                "all-reduce": text.count("all-reduce("),
                "refusal": refusal,
            }
        )
    )


def test_eight_devices_learn_the_same_schedule(devices):
    assert devices["devices"] == 8
    assert devices["pairs"] < 1e-5
    assert devices["schedule"] < 1e-5
    assert devices["moved"] > 0.01


def test_batches_are_spread_over_the_devices(devices):
    assert devices["teacher"] == [1, 1, 8, 8]
    assert devices["all-reduce"] > 0


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(devices):
    assert "divide by the 8 devices, got 6" in devices["refusal"]
