"""Checkpoints: schedules in JSON, states of learning in Orbax, files that are whole at any moment."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import checkpoint, curve, optimizers, schedules, solvers, timesteps
from ld3_jax.coefficients import Coefficients
from ld3_jax.steps import TrainState
from ld3_jax.timesteps import TimestepParams

ROWS = {"predict": [[0.0]] * 4, "correct": []}

SCHEDULE = schedules.vp_linear()


@pytest.fixture
def learned():
    """A schedule whose numbers have no short decimal form."""
    t = timesteps.grid("logsnr", SCHEDULE, 4)
    t_c = t.at[1:-1].multiply(0.97)
    method = solvers.Method("unipc", 4, order=2, variant="bh2", lower_order_final=False)
    losses = {"loss": "l2", "unseen": {"learned": {"mean": 0.1 + 0.2}}}
    model = {"family": "gaussian", "digest": "0123456789abcdef"}
    return checkpoint.learned_schedule(method, SCHEDULE, t, t_c, model=model, losses=losses)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "schedule.json"


def train_state(step):
    """A state with moved noise and an optimizer that has moments, whose every number tells the step."""
    params = TimestepParams(jnp.full(4, 0.1 * step), jnp.full(3, 0.01 * step))
    optimizer = optimizers.make_optimizer("adam", 0.05, "rmsprop", 0.01, 10)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    scalars = {name: jnp.float32(step + 0.1) for name in ("best_loss", "start_loss", "valid_loss", "noise_rate")}
    counts = {name: jnp.int32(step) for name in ("step", "worse", "floor_visits")}
    noise = {"noise": jnp.full((5, 2), 1.0 * step), "valid_noise": jnp.full((4, 2), 2.0 * step)}
    factors = TimestepParams(jnp.ones(()), jnp.ones(()))
    rest = {"params": params, "opt_state": opt_state, "factors": factors, "best": params, "done": jnp.asarray(False)}
    return TrainState(**rest, **scalars, **counts, **noise)


def assert_identical(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for one, another in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, another, strict=True)


def test_a_schedule_reads_back_bit_for_bit(learned, path):
    checkpoint.save_schedule(path, learned)
    assert checkpoint.load_schedule(path) == learned
    t, t_c = checkpoint.times(checkpoint.load_schedule(path))
    np.testing.assert_array_equal(t, timesteps.grid("logsnr", SCHEDULE, 4), strict=True)
    assert not np.array_equal(t, t_c)


def test_a_schedules_lam_is_that_of_its_times(learned):
    np.testing.assert_array_equal(np.float32(learned.lam), SCHEDULE.lam(jnp.asarray(learned.t)))


@pytest.fixture
def with_curve(learned):
    waves = jnp.sin(jnp.arange(12.0)).reshape(2, 6)
    params = TimestepParams(0.5 * waves, 0.3 * waves[:, 1:])
    t, t_c = curve.read_off(params, SCHEDULE, 4, "edm")
    record = checkpoint.curve_record(params, "edm", 0.5, (4, 6))
    return params, checkpoint.learned_schedule(learned.method, SCHEDULE, t, t_c, model={}, losses={}, curve=record)


def test_a_curve_reads_back_and_serves_other_numbers_of_calls(with_curve, path):
    params, learned = with_curve
    checkpoint.save_schedule(path, learned)
    again = checkpoint.load_schedule(path)
    assert again == learned
    other = checkpoint.for_calls(again, 9, SCHEDULE)
    assert other.method == replace(learned.method, nfe=9)
    for found, expected in zip(checkpoint.times(other), curve.read_off(params, SCHEDULE, 9, "edm"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert checkpoint.for_calls(again, 4, SCHEDULE) is again
    with pytest.raises(ValueError, match="solver 'unipc' of order 2 needs nfe of at least 2, got 1"):
        checkpoint.for_calls(again, 1, SCHEDULE)


def test_another_number_of_calls_needs_a_curve(learned):
    with pytest.raises(ValueError, match="for 4 network calls and has no curve to read 9 off"):
        checkpoint.for_calls(learned, 9, SCHEDULE)


@pytest.mark.parametrize(
    "damage",
    [{"logits": [0.0]}, {"grid": "even"}, {"shifts": [[float("nan")] * 5] * 2}, {"logits": 1.0}, {"max_shift": -1}],
)
def test_a_damaged_curve_is_refused(damage, with_curve, path):
    checkpoint.save_schedule(path, with_curve[1])
    record = json.loads(path.read_text())
    record["curve"] |= damage
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{path}: a curve has"):
        checkpoint.load_schedule(path)


def test_learned_coefficients_come_back_bit_for_bit_and_times_alone_are_still_read(learned, path):
    keys = jax.random.split(jax.random.key(0), 3)
    change = Coefficients(
        *(jax.random.normal(key, shape) for key, shape in zip(keys, [(4,), (4, 4), (4, 4)], strict=True))
    )
    t, t_c = checkpoint.times(learned)
    both = checkpoint.learned_schedule(learned.method, SCHEDULE, t, t_c, change, model={}, losses={})
    checkpoint.save_schedule(path, both)
    again = checkpoint.load_schedule(path)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.coefficients(again), change)
    np.testing.assert_array_equal(checkpoint.times(again)[0], t)
    assert json.loads(path.read_text())["version"] == 2
    assert checkpoint.coefficients(learned) is None


def test_a_schedule_is_plain_json(learned, path):
    checkpoint.save_schedule(path, learned)
    record = json.loads(path.read_text())
    expected = {"solver": "unipc", "nfe": 4, "n_steps": 4, "order": 2, "variant": "bh2", "lower_order_final": False}
    assert expected.items() <= record.items()
    assert {"t", "t_c", "lam", "model", "losses"} <= record.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something else"}, "not a schedule"),
        ({"version": 3}, r"schedule of version 3, this program reads \[1, 2\]"),
        ({"version": 2}, "lacks coefficients or a curve"),
        ({"version": 2, "coefficients": [1.0]}, r"coefficients must be the lists of .*'base', 'predict', 'correct'"),
        ({"version": 2, "coefficients": {"base": [0.0] * 4}}, "coefficients must be the lists of"),
        ({"version": 2, "coefficients": {"base": [0.0] * 3, **ROWS}}, "must be finite and have 4 rows"),
        ({"version": 2, "coefficients": {"base": [float("inf")] * 4, **ROWS}}, "must be finite and have 4 rows"),
        ({"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS, "predict": 0.0}}, "must be finite and have 4 rows"),
        (
            {"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS, "correct": [0.0] * 4}},
            "must be finite and have 4",
        ),
        ({"t_c": None}, r"lacks \['t_c'\]"),
        ({"solver": None, "losses": None}, r"lacks \['solver', 'losses'\]"),
        ({"t": [1.0, 0.5, 0.001]}, "3 times, 5 network times and 5 lam for 4 steps"),
        ({"t": [1.0, 0.5, 0.7, 0.2, 0.001]}, r"t must descend, got t = \[1.0, 0.5, 0.7, 0.2, 0.001\]"),
        ({"t": [1.0, 0.5, 0.5, 0.2, 0.001]}, "t must descend"),
        ({"t": [1.0, 0.5, float("nan"), 0.2, 0.001]}, "finite"),
        ({"t_c": [1.0, 0.5, float("nan"), 0.2, 0.001]}, "finite"),
        ({"lam": [float("-inf"), 0.0, 1.0, 2.0, 3.0]}, "finite"),
        ({"order": 7}, "orders"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"t": [1.0, 0.5, "0.3", 0.2, 0.001]}, "t"),
        ({"t": 5.0}, "t"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_schedule_is_refused_by_name(change, message, learned, path):
    checkpoint.save_schedule(path, learned)
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_schedule(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "3", '{"solver": "unipc"}', "{"])
def test_what_is_no_schedule_is_refused_by_name(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json: not"):
        checkpoint.load_schedule(path)


def test_a_schedule_cut_short_anywhere_is_refused_by_name(learned, path):
    checkpoint.save_schedule(path, learned)
    content = path.read_text().rstrip()
    for length in range(0, len(content), 17):
        path.write_text(content[:length])
        with pytest.raises(ValueError, match=r"schedule\.json: not valid JSON, perhaps cut short"):
            checkpoint.load_schedule(path)


def test_a_missing_schedule_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"schedule\.json"):
        checkpoint.load_schedule(path)


@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(owner, function, learned, path, monkeypatch):
    checkpoint.save_schedule(path, learned)
    content = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, function, full)
    with pytest.raises(OSError, match=r"cannot write .*schedule\.json: No space left") as caught:
        checkpoint.write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_write_over_a_file_replaces_it(path):
    for content in (b"long content", b"short"):
        checkpoint.write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_state_survives_and_only_the_latest_are_kept(tmp_path):
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        fresh = train_state(0)
        assert checkpoint.restore(checkpoints, fresh) is fresh
        for step in (1, 2, 3):
            checkpoint.save(checkpoints, step, train_state(step), wait=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert_identical(checkpoint.restore(checkpoints, fresh), train_state(3))
        assert sorted(checkpoints.all_steps()) == [2, 3]


def test_a_state_without_noise_survives(tmp_path):
    def still(step):
        return train_state(step)._replace(noise=(), valid_noise=())

    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, still(1))
    with checkpoint.manager(tmp_path) as checkpoints:
        assert_identical(checkpoint.restore(checkpoints, still(0)), still(1))


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [((), jnp.zeros((5, 2))), ({"a": jnp.zeros((5, 2))}, jnp.zeros((5, 2)))],
    ids=["nothing", "tree"],
)
def test_a_state_of_another_structure_is_refused(saved, fresh, tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, train_state(1)._replace(noise=saved))
    with checkpoint.manager(tmp_path) as checkpoints, pytest.raises(ValueError, match="structure"):
        checkpoint.restore(checkpoints, train_state(0)._replace(noise=fresh))


def test_what_a_killed_save_left_does_no_harm(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, train_state(1))
    leftover = tmp_path / "2.orbax-checkpoint-tmp" / "default"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"a file")
    with checkpoint.manager(tmp_path) as checkpoints:
        assert_identical(checkpoint.restore(checkpoints, train_state(0)), train_state(1))
        checkpoint.save(checkpoints, 2, train_state(2))
    with checkpoint.manager(tmp_path) as checkpoints:
        assert_identical(checkpoint.restore(checkpoints, train_state(0)), train_state(2))


@pytest.mark.parametrize(
    ("busy", "step", "wait", "saved"),
    [
        (False, 1, False, []),
        (False, 1, True, []),
        (False, 2, False, [2]),
        (True, 2, False, []),
        (True, 2, True, [2]),
    ],
)
def test_a_step_is_saved_once_and_passed_over_while_one_is_under_way(busy, step, wait, saved, tmp_path, monkeypatch):
    steps = []
    with checkpoint.manager(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints, "latest_step", lambda: 1)
        monkeypatch.setattr(checkpoints, "is_saving_in_progress", lambda: busy)
        monkeypatch.setattr(checkpoints, "save", lambda step, args: steps.append(step))
        checkpoint.save(checkpoints, step, {}, wait=wait)
    assert steps == saved


def test_saving_a_saved_step_again_keeps_the_first(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, train_state(1), wait=True)
        checkpoint.save(checkpoints, 1, train_state(2), wait=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert_identical(checkpoint.restore(checkpoints, train_state(0)), train_state(1))
