"""The score network of poses: its symmetries, its files, its training; and what its committed weights predict."""

import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_poses import NOISE, chain, toy

from ld3_jax import poses, pretrained
from ld3_jax.networks import weights
from ld3_jax.poses import Pose, network, rotations, training

KEY = jax.random.key(4)
SMALL = network.PoseNet(hidden=8, layers=1, bases=6)
EXTRA = all(importlib.util.find_spec(name) for name in ("rdkit", "MDAnalysis", "prolif"))
with_extra = pytest.mark.skipif(not EXTRA, reason="needs the extra docking")
TIMES = Pose(*jnp.asarray([[0.3, 0.8], [0.5, 0.2], [0.1, 0.9]]))


def drawn(context, size=None):
    return jax.tree.map(jnp.asarray, weights.random(network.shapes(context, size)))


@pytest.fixture(scope="module")
def setting():
    """A chain of atoms in a pocket of a few, with parameters as they are drawn."""
    pocket = 4 * np.asarray(jax.random.normal(KEY, (9, 3)), float)
    context = network.make_context(chain(6), "CCNCOX", pocket, "CNOCSCCNP", nearest=8)
    return context, drawn(context, SMALL), jax.jit(network.predict, static_argnums=2)


def moved(context, x, rotation, shift):
    """Ligand and pocket turned and moved together; improper rotations also mirror the reference conformer."""
    flip = float(np.linalg.det(rotation))
    turn = jnp.asarray(np.roll(Rotation.from_matrix(flip * rotation).as_quat(), 1), jnp.float32)
    own = context.ligand._replace(positions=flip * context.ligand.positions)
    context = context._replace(ligand=own, pocket=context.pocket @ rotation.T + shift)
    return context, Pose(
        x.translation @ rotation.T + shift,
        rotations.product(jnp.broadcast_to(turn, x.rotation.shape), x.rotation),
        flip * x.torsions,
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_scores_turn_with_ligand_and_pocket(setting, mirrored):
    context, params, predict = setting
    x = poses.draw_prior(KEY, 2, 3)
    x = x._replace(translation=x.translation / 10)
    rotation = Rotation.from_rotvec([0.4, -1.9, 0.7]).as_matrix() * (-1.0 if mirrored else 1.0)
    rotation, shift = jnp.asarray(rotation, jnp.float32), jnp.asarray([[3.0, -8.0, 5.0]])
    eps = predict(params, context, NOISE, x, TIMES)
    other = predict(params, *(lambda context, x: (context, NOISE, x))(*moved(context, x, rotation, shift)), TIMES)
    # The rotation's eps is in the frame of the body, an axis, which a reflection through the origin leaves.
    sign = -1.0 if mirrored else 1.0
    expected = Pose(eps.translation @ rotation.T, eps.rotation, sign * eps.torsions)
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in eps)
    chex.assert_trees_all_close(other, expected, atol=2e-4 * max(float(jnp.abs(leaf).max()) for leaf in eps))


def test_the_units_are_the_norms_of_drawn_scores():
    sigmas = NOISE.sigmas(jnp.asarray(0.8))
    unit = jax.jit(network.units)(sigmas)
    zero = Pose(jnp.zeros((4000, 3)), rotations.identity(4000), jnp.zeros((4000, 1)))

    @jax.jit
    def scores(zero):
        apart = poses.difference(poses.add_noise(KEY, zero, sigmas), zero)
        return (
            poses.kernels.igso3(apart.rotation, sigmas.rotation)[1] * sigmas.rotation,
            poses.kernels.wrapped_normal(apart.torsions, sigmas.torsions)[1] * sigmas.torsions,
        )

    for eps, expected in zip(scores(zero), unit[1:], strict=True):
        assert float(jnp.sqrt(jnp.mean(eps**2))) == pytest.approx(float(expected), rel=0.05)


def test_training_comes_nearer_the_exact_score(setting):
    recipe = training.Recipe(steps=50, batch_size=8, rate=0.01, average=0.9)
    trained = list(training.train(KEY, toy(2, torsions=3), setting[0], NOISE, recipe, SMALL))
    assert [done for done, _, _ in trained] == [25, 50]
    assert trained[1][1] < 0.95 * trained[0][1]  # 0.91 as measured; nothing learned would be 1
    chex.assert_trees_all_equal_shapes(trained[1][2], network.shapes(setting[0], SMALL))


def test_weights_read_back_in_half_precision_and_damage_is_named(setting, tmp_path):
    context, params = setting[0], drawn(setting[0])
    path = tmp_path / "weights.safetensors"
    network.write(path, params)
    chex.assert_trees_all_close(network.read(path, context), params, rtol=1e-3, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        network.read(tmp_path / "none.safetensors", context)
    other = jax.tree.map(lambda leaf: leaf[..., :1], params)
    network.write(path, other)
    with pytest.raises(ValueError, match=r"weights\.safetensors: .* has the shape"):
        network.read(path, context)


def test_a_single_atom_has_finite_scores():
    context = network.make_context(chain(1), "C", np.eye(3) * 4.0, "CNO")
    x = poses.draw_prior(KEY, 2, 0)
    model = network.noise_model(drawn(context, SMALL), context, NOISE)
    eps = jax.jit(model)(x, jnp.asarray(0.5))
    chex.assert_tree_all_finite(eps)
    assert eps.torsions.shape == (2, 0)


@with_extra
def test_the_committed_weights_predict_the_exact_score_as_measured():
    """The table of docs/guides/docking.md, a little looser, for there are fewer noises here."""
    from ld3_jax.poses import molecules

    model = pretrained.load("ergotamine_network").model
    params, context = model.args[1:3]
    found = molecules.load("ergotamine")
    errors, _ = training.accuracy(params, KEY, found.poses, context, NOISE, jnp.asarray(0.5), 100)
    assert all(error < limit for error, limit in zip(errors, (0.25, 0.35, 0.65), strict=True))
