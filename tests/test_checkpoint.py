"""Checkpoints: states of learning in Orbax, which a killed run goes on from."""

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
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        fresh = train_state(0)
        assert checkpoint.restore(checkpoints, fresh) is fresh
        for step in (1, 2, 3):
            checkpoint.save(checkpoints, step, train_state(step), wait=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoint.restore(checkpoints, fresh), train_state(3), strict=True)
        assert sorted(checkpoints.all_steps()) == [2, 3]


def test_a_state_without_noise_survives(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, with_noise(1, (), ()))
    with checkpoint.manager(tmp_path) as checkpoints:
        restored = checkpoint.restore(checkpoints, with_noise(0, (), ()))
    chex.assert_trees_all_equal(restored, with_noise(1, (), ()), strict=True)


def test_a_state_of_another_learner_survives(tmp_path):
    damping = jnp.float32(0.01)
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, train_state(1)._replace(learner=damping))
    with checkpoint.manager(tmp_path) as checkpoints:
        restored = checkpoint.restore(checkpoints, train_state(0)._replace(learner=0 * damping))
    chex.assert_trees_all_equal(restored, train_state(1)._replace(learner=damping), strict=True)


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [((), jnp.zeros((5, 2))), ({"a": jnp.zeros((5, 2))}, jnp.zeros((5, 2)))],
    ids=["nothing", "tree"],
)
def test_a_state_of_another_structure_is_refused(saved, fresh, tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, with_noise(1, saved, jnp.zeros((4, 2))))
    with checkpoint.manager(tmp_path) as checkpoints, pytest.raises(ValueError, match="structure"):
        checkpoint.restore(checkpoints, with_noise(0, fresh, jnp.zeros((4, 2))))


def test_what_a_killed_save_left_does_no_harm(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, train_state(1))
    leftover = tmp_path / "2.orbax-checkpoint-tmp" / "default"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"a file")
    with checkpoint.manager(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoint.restore(checkpoints, train_state(0)), train_state(1), strict=True)
        checkpoint.save(checkpoints, 2, train_state(2))
    with checkpoint.manager(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoint.restore(checkpoints, train_state(0)), train_state(2), strict=True)


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
        chex.assert_trees_all_equal(checkpoint.restore(checkpoints, train_state(0)), train_state(1), strict=True)
