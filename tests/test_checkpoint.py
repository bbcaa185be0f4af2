"""Checkpoints: states of learning in Orbax, from which a killed run continues."""

import errno
import logging
import tempfile
from unittest import mock

import chex
import jax.numpy as jnp
import pytest

from ld3_jax import checkpoint
from ld3_jax.learning import TrainState, by_group, optimizers
from ld3_jax.learning.gradient_descent import Memory


def train_state(step):
    """A state with moved noise and an optimizer that has moments, whose every number tells the step."""
    params = {"logits": jnp.full(4, 0.1 * step), "shifts": jnp.full(3, 0.01 * step)}
    optimizer = by_group({"logits": optimizers.adam(0.05, 10), "shifts": optimizers.rmsprop(0.01, 10)})
    _, moments = optimizer.update(params, optimizer.init(params), params)
    memory = Memory(
        optimizer=moments,
        factors={"logits": jnp.ones(()), "shifts": jnp.float32(0.5 * step)},
        worse=jnp.int32(step),
        floor_visits=jnp.int32(step),
        noise=jnp.full((5, 2), 1.0 * step),
        valid_noise=jnp.full((4, 2), 2.0 * step),
        noise_rate=jnp.float32(step + 0.1),
    )
    scalars = {name: jnp.float32(step + 0.1) for name in ("best_loss", "start_loss", "valid_loss")}
    return TrainState(
        step=jnp.int32(step), params=params, learner=memory, best=params, done=jnp.asarray(False), **scalars
    )


def with_noise(step, noise, valid_noise):
    state = train_state(step)
    return state._replace(learner=state.learner._replace(noise=noise, valid_noise=valid_noise))


def test_a_state_survives_and_only_the_latest_are_kept(tmp_path):
    fresh = train_state(0)
    assert checkpoint.restore(tmp_path / "none", fresh) is fresh
    (tmp_path / "notes.txt").write_text("a user's")
    for step in (8, 9, 10):
        checkpoint.save(tmp_path, step, train_state(step))
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, fresh), train_state(10), strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000009",
        "00000009.json",
        "00000010",
        "00000010.json",
        "notes.txt",
    ]


def test_a_full_disk_is_told_of_before_orbax_begins(tmp_path, monkeypatch):
    full = mock.MagicMock()
    full.return_value.__enter__.return_value.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"cannot write .*00000001: No space left on device$"):
        checkpoint.save(tmp_path, 1, train_state(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", [with_noise(1, (), ()), train_state(1)._replace(learner=jnp.float32(0.01))])
def test_a_state_without_noise_or_of_another_learner_survives(state, tmp_path):
    checkpoint.save(tmp_path, 1, state)
    fresh = jnp.zeros_like(state.learner) if not isinstance(state.learner, Memory) else state.learner
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state._replace(learner=fresh)), state, strict=True)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_an_earlier_state_serves_where_a_file_of_the_latest_is_damaged(tmp_path, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, train_state(step))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "00000002" in str(path)]
    for path in files:
        content = path.read_bytes()
        for damaged in (b"", content[:-5], flipped(content), None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with caplog.at_level(logging.WARNING):
                chex.assert_trees_all_equal(checkpoint.restore(tmp_path, train_state(0)), train_state(1), strict=True)
            path.write_bytes(content)
    assert caplog.text.count("00000002 is damaged") == 4 * len(files) - 1  # without its seal it is not there
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, train_state(0)), train_state(2), strict=True)


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [((), jnp.zeros((5, 2))), ({"a": jnp.zeros((5, 2))}, jnp.zeros((5, 2))), (jnp.zeros((4, 2)), jnp.zeros((5, 2)))],
    ids=["nothing", "tree", "shape"],
)
def test_a_state_of_another_structure_does_not_serve(saved, fresh, tmp_path, caplog):
    checkpoint.save(tmp_path, 1, with_noise(1, saved, jnp.zeros((4, 2))))
    own = with_noise(0, fresh, jnp.zeros((4, 2)))
    assert checkpoint.restore(tmp_path, own) is own
    assert "00000001 is damaged" in caplog.text


def test_what_a_killed_save_left_does_no_harm(tmp_path):
    checkpoint.save(tmp_path, 1, train_state(1))
    checkpoint.save(tmp_path, 2, train_state(2))
    (tmp_path / "00000002.json").unlink()  # killed before the seal
    (tmp_path / "00000003.orbax-checkpoint-tmp").mkdir()
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, train_state(0)), train_state(1), strict=True)
    checkpoint.save(tmp_path, 2, train_state(2))
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, train_state(0)), train_state(2), strict=True)
    assert len(list(tmp_path.iterdir())) == 4
