"""Poses: noise kernels, geometry of a ligand, the exact score, and that solvers keep their order on the manifold."""

import itertools
import math
from functools import partial

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from ld3_jax import losses, poses, solvers
from ld3_jax.grids import grid
from ld3_jax.poses import Pose, kernels, rotations, symmetries
from ld3_jax.poses.ligand import of_turning_bonds
from ld3_jax.solvers import Solver

KEY = jax.random.key(0)
NOISE = poses.PoseNoise()
# Each kernel's scales from DiffDock's smallest to its largest noise, in float32.
ROTATION_SCALES = jnp.asarray(np.geomspace(0.03, 1.55, 9), jnp.float32)
TORSION_SCALES = jnp.asarray(np.geomspace(0.0314, 3.14, 9), jnp.float32)
ANGLES = np.linspace(0.0, np.pi, 4001)


def vectors(angles, axis=(0.48, -0.6, 0.64)):
    return jnp.asarray(np.multiply.outer(angles, axis), jnp.float32)


@pytest.fixture(scope="module")
def rotation_kernel():
    """Log density, score and its derivatives at every angle and scale."""

    def at(sigma, v):
        return *kernels.igso3(v, sigma), jax.jacfwd(kernels.igso3)(v, sigma)[1]

    return jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(ROTATION_SCALES, vectors(ANGLES))


def test_the_rotations_density_integrates_to_one(rotation_kernel):
    density = np.exp(np.asarray(rotation_kernel[0], float)) * (1 - np.cos(ANGLES)) / np.pi
    np.testing.assert_allclose(np.trapezoid(density, ANGLES), 1, atol=1e-4)


def test_the_rotations_density_equals_its_slow_series(rotation_kernel):
    order, angle = np.arange(400)[:, None], ANGLES[1:]
    for sigma, value in zip(np.asarray(ROTATION_SCALES, float), rotation_kernel[0][:, 1:], strict=True):
        terms = (2 * order + 1) * np.exp(-order * (order + 1) * sigma**2 / 2) * np.sin((order + 0.5) * angle[None])
        series = terms.sum(0) / np.sin(angle / 2)
        seen = series > 1e-6 * series.max()  # beyond, the series is rounding
        np.testing.assert_allclose(value[seen], np.log(series[seen]), atol=2e-5)


def test_the_rotations_score_is_the_slope_of_the_log_density(rotation_kernel, float64):
    along = np.asarray(rotation_kernel[1], float)[:, 1:-1:50] @ np.array([0.48, -0.6, 0.64])
    step, axis = 1e-6, np.array([0.48, -0.6, 0.64])
    up, down = (
        jax.vmap(kernels.igso3, (None, 0))(
            jnp.multiply.outer(ANGLES[1:-1:50] + h, axis), ROTATION_SCALES.astype(float)
        )[0]
        for h in (step, -step)
    )
    np.testing.assert_allclose(along, (up - down) / (2 * step), rtol=1e-3, atol=1e-3 * np.abs(along).max() ** 0.5)


def test_nothing_is_nan_at_angle_zero_and_pi(rotation_kernel):
    chex.assert_tree_all_finite(rotation_kernel)
    score = np.asarray(rotation_kernel[1])
    np.testing.assert_array_equal(score[:, 0], 0)
    scale = 1 / np.asarray(ROTATION_SCALES) ** 2
    assert (np.abs(score[:, -1]).max(-1) < 1e-2 * scale).all()  # the score turns round at pi
    angle = jnp.asarray([0.0, math.pi, -math.pi, 50.0])
    slope = jax.grad(lambda angle, sigma: kernels.wrapped_normal(angle, sigma)[1])
    chex.assert_tree_all_finite(jax.jit(jax.vmap(jax.vmap(slope, (0, None)), (None, 0)))(angle, TORSION_SCALES))
    v = jnp.asarray([[0.0, 0.0, 0.0], [math.pi, 0.0, 0.0], [0.0, 0.0, 1e-6]])
    for jacobian in (jax.jacfwd, jax.jacrev):
        there_and_back = jacobian(lambda v: rotations.log(rotations.exp(v)))
        chex.assert_tree_all_finite(jax.jit(jax.vmap(there_and_back))(v))


@pytest.mark.parametrize("kernel", ["wrapped_normal", "gaussian"])
def test_angles_and_translations_have_normal_densities_and_their_scores(kernel, float64):
    angle = np.linspace(-np.pi, np.pi, 20001)

    def log_density(angle, sigma):
        return getattr(kernels, kernel)(angle if kernel == "wrapped_normal" else angle[:, None], sigma)[0]

    at = angle[100:-100:100].astype(np.float32)  # at pi itself the score jumps from one side to the other
    for sigma in TORSION_SCALES[::4]:
        if kernel == "wrapped_normal" or sigma < 0.5:
            density = np.exp(np.asarray(log_density(jnp.asarray(angle, jnp.float32), sigma), float))
            assert np.trapezoid(density, angle) == pytest.approx(1, abs=1e-4)
        score = getattr(kernels, kernel)(jnp.asarray(at)[:, None], sigma)[1][:, 0]
        up, down = (log_density(jnp.asarray(at, float) + h, sigma.astype(float)) for h in (1e-6, -1e-6))
        np.testing.assert_allclose(score, (up - down) / 2e-6, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.03, 1.55])
def test_rotations_are_drawn_by_their_density(sigma):
    drawn = np.linalg.norm(jax.jit(kernels.draw_igso3, static_argnums=2)(KEY, jnp.asarray(sigma), (2000,)), axis=-1)
    angles = np.linspace(0, np.pi, 20001)
    log_density = jax.jit(kernels.igso3)(vectors(angles), jnp.asarray(sigma))[0]
    cumulative = np.cumsum(np.exp(np.asarray(log_density, float)) * (1 - np.cos(angles)))
    assert stats.kstest(drawn, lambda x: np.interp(x, angles, cumulative / cumulative[-1])).pvalue > 0.01


def test_quaternions_are_rotations():
    a, b = rotations.uniform(KEY, (2, 5))
    theirs_a, theirs_b = (Rotation.from_quat(np.roll(q, -1, axis=-1)) for q in (a, b))
    product = rotations.product(a, b)
    np.testing.assert_allclose(rotations.log(product), (theirs_a * theirs_b).as_rotvec(), atol=2e-6)
    np.testing.assert_allclose(rotations.log(rotations.exp(rotations.log(a))), theirs_a.as_rotvec(), atol=2e-6)
    np.testing.assert_allclose(rotations.product(a, rotations.inverse(a)), rotations.identity(5), atol=1e-6)
    x = jax.random.normal(KEY, (4, 3))
    np.testing.assert_allclose(rotations.rotate(a[0], x), theirs_a[0].apply(x), atol=1e-5)


def test_difference_is_the_inverse_of_retract():
    first, second = (poses.draw_prior(key, 6, 4) for key in jax.random.split(KEY))
    update = poses.difference(second, first)
    assert jax.tree.map(jnp.shape, update) == Pose((6, 3), (6, 3), (6, 4))
    reached = poses.retract(first, update)
    same = jnp.sign(jnp.sum(reached.rotation * second.rotation, -1, keepdims=True))  # q and -q are one rotation
    chex.assert_trees_all_close(reached, second._replace(rotation=same * second.rotation), atol=2e-5)


def chain(count, key=KEY, kink=0.8):
    """A chain of atoms, every bond of which but the last ones turns."""
    steps = np.array([1.5, 0.0, 0.0]) + kink * np.asarray(jax.random.normal(key, (count, 3)), float)
    return poses.make_ligand(np.cumsum(steps, 0), list(itertools.pairwise(range(count))))


def dihedral(x, i):
    a, b, c = (x[i + k + 1] - x[i + k] for k in range(3))
    normal, other = np.cross(a, b), np.cross(b, c)
    return math.atan2(np.dot(np.cross(normal, other), b / np.linalg.norm(b)), np.dot(normal, other))


def test_torsions_turn_their_own_bonds_and_the_whole_stays_where_it_was():
    ligand = chain(7)
    angles = jnp.asarray([0.7, -2.0, 3.0, 0.4])
    still = Pose(jnp.zeros((1, 3)), rotations.identity(1), angles[None])
    x, before = (np.asarray(v) for v in (poses.atoms(ligand, still)[0], ligand.positions))
    assert len(ligand.bonds) == 4
    for i in range(4):
        # Which end turns does not matter to the angle between them.
        turned = dihedral(x, i) - dihedral(before, i) - float(angles[i])
        assert abs(math.remainder(turned, 2 * math.pi)) < 1e-4
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    best, _ = Rotation.align_vectors(before, x)
    np.testing.assert_allclose(best.magnitude(), 0, atol=1e-4)
    bonds = np.linalg.norm(np.diff(x, axis=0), axis=-1)
    np.testing.assert_allclose(bonds, np.linalg.norm(np.diff(before, axis=0), axis=-1), rtol=1e-5)


def test_the_whole_is_rotated_about_its_centre_and_moved():
    ligand, pose = chain(5), poses.draw_prior(KEY, 3, 2)
    x = poses.atoms(ligand, pose)
    np.testing.assert_allclose(x.mean(1), pose.translation, atol=1e-5)
    update = Pose(jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.zeros((3, 2)))
    np.testing.assert_allclose(poses.atoms(ligand, poses.retract(pose, update)), x + 1, atol=1e-4)


def test_gradients_of_atoms_equal_finite_differences(float64):
    ligand = chain(6)
    pose = jax.tree.map(lambda leaf: leaf.astype(float), poses.draw_prior(KEY, 1, 3))
    weights = jax.random.normal(KEY, (1, 6, 3))

    def total(update):
        return jnp.vdot(weights, poses.atoms(ligand, poses.retract(pose, update)))

    update = Pose(jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.zeros((1, 3)))
    gradient, _ = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(total))(update))
    flat, unravel = jax.flatten_util.ravel_pytree(update)
    steps = 1e-6 * jnp.eye(len(flat))
    up, down = (jax.jit(jax.vmap(lambda step: total(unravel(step))))(sign * steps) for sign in (1, -1))
    np.testing.assert_allclose(gradient, (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_ligand_without_torsions_is_rigid(count):
    ligand = chain(count, kink=0.0)  # points on a line, on which a rotation about the line has no effect
    pose = poses.draw_prior(KEY, 2, 0)

    @jax.jit
    @jax.value_and_grad
    def total(pose):
        return jnp.sum(poses.atoms(ligand, pose) ** 2)

    value, gradient = total(pose)
    assert ligand.bonds.shape == (0, 2)
    chex.assert_tree_all_finite((value, gradient))
    eps = jax.jit(poses.noise_model(pose, NOISE))(pose, jnp.asarray(0.5))
    chex.assert_tree_all_finite(eps)
    assert eps.torsions.shape == (2, 0)


def test_alignment_has_a_gradient_where_the_molecule_is_a_line():
    from ld3_jax.poses.ligand import aligned

    line = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.5, 0.0, 0.0]])
    moved = rotations.rotate(rotations.exp(jnp.asarray([0.1, 0.7, -0.4])), line) + 3
    np.testing.assert_allclose(jax.jit(aligned)(moved, line), line, atol=1e-5)
    chex.assert_tree_all_finite(jax.jit(jax.jacrev(lambda x: aligned(x, line)))(moved))


@pytest.mark.parametrize(
    ("positions", "bonds", "symmetries", "message"),
    [
        (np.zeros((0, 3)), [], [], "a ligand has at least 1 atom"),
        (np.zeros((3, 3)), [(0, 1), (1, 3)], [], r"bonds join two of the 3 atoms, numbered from 0, got \(1, 3\)"),
        (np.zeros((3, 3)), [(0, 1)], [], "must be one molecule"),
        (np.zeros((2, 3)), [(0, 1)], [], r"a ligand's atoms lie apart: got \[0. 0. 0.\] of atom 0 and .* of atom 1"),
        (np.full((2, 3), np.nan), [(0, 1)], [], "a ligand's atoms lie apart: got .*nan"),
        (np.zeros((2, 3)), [(0, 1)], [(0, 0)], r"a symmetry is an order of the 2 atoms, got \(0, 0\)"),
    ],
)
def test_an_impossible_ligand_is_refused(positions, bonds, symmetries, message):
    with pytest.raises(ValueError, match=message):
        poses.make_ligand(positions, bonds, symmetries)


def test_noise_beyond_the_kernels_is_refused():
    with pytest.raises(ValueError, match=r"at most 1\.6 for rotations and at most pi for torsions, got 3.0"):
        poses.PoseNoise(rotation=poses.RotationNoise(0.03, 3.0))


def test_the_loss_is_the_squared_rmsd_of_the_nearest_symmetry():
    ligand = poses.make_ligand(np.eye(4, 3), [(0, 1), (1, 2), (2, 3)], [(3, 2, 1, 0)])
    loss = poses.mean_square(ligand)
    x, y = jax.random.normal(KEY, (2, 5, 4, 3))
    np.testing.assert_allclose(loss(x, x[:, ::-1]), 0, atol=1e-10)
    direct, mirrored = (((x - y) ** 2).sum(-1).mean(-1) for y in (y, y[:, ::-1]))
    np.testing.assert_allclose(loss(x, y), np.minimum(direct, mirrored), rtol=1e-5)
    both = losses.both(y, loss)
    squares = sum(jnp.sum(part**2, -1) for part in both.residuals(x, y))
    np.testing.assert_allclose(jax.vmap(both.phi)(squares), losses.both(y, loss)(x, y), rtol=1e-5)


# Two CF3 on one ring that flips, between them a sulfonamide; three phosphates on a ring of three.
TWO_ARMS = ("CCCCCCCFFFCFFFSOON", "01 12 23 34 45 50 16 67 68 69 5a ab ac ad 0e ef eg eh")
THREE_ARMS = ("CCCPOOOPOOOPOOO", "01 12 20 03 34 35 36 17 78 79 7a 2b bc bd be")


@pytest.mark.parametrize(
    ("labels", "bonds", "frames", "swaps"),
    [
        (*TWO_ARMS, [1, 2], [[2], [6, 6]]),
        (*THREE_ARMS, [6], [[6, 6, 6]]),
        ("CCCCCC", "01 12 23 34 45 50", [1], [[12]]),
        ("CCCCNO", "01 02 03 04 45", [1], [[6]]),
        ("CNO", "01 12", [], []),
    ],
    ids=["flip", "threefold", "ring", "leaves", "none"],
)
def test_all_symmetries_are_found_as_products_of_groups(labels, bonds, frames, swaps):
    bonds = [(int(a, 18), int(b, 18)) for a, b in bonds.split()]
    count, rng = len(labels), np.random.default_rng(0)
    groups = sorted(symmetries.groups(list(labels), bonds), key=lambda group: len(group[0]))
    assert [len(group[0]) for group in groups] == frames
    assert [[len(swap) for swap in group[1]] for group in groups] == swaps
    every = [np.arange(count)]
    for own, moves in groups:
        for orders in (own, *moves):
            every = [first[order] for first in every for order in orders]
    # Each order keeps elements and bonds, and no two are the same; the loss finds the nearest of all of them.
    graph = {frozenset(bond) for bond in bonds}
    assert len({tuple(order) for order in every}) == len(every)
    for order in every:
        assert [labels[i] for i in order] == list(labels)
        assert {frozenset(order[list(bond)]) for bond in bonds} == graph
    x, y = rng.standard_normal((2, 3, count, 3))
    y[0] = x[0][every[-1]]
    ligand = of_turning_bonds(rng.standard_normal((count, 3)), [], bonds, groups)
    expected = np.min([((x - y[:, order]) ** 2).sum(-1).mean(-1) for order in every], 0)
    np.testing.assert_allclose(jax.jit(poses.mean_square(ligand))(x, y), expected, rtol=1e-5, atol=1e-6)


def test_symmetries_that_are_no_products_are_refused_when_they_are_too_many():
    with pytest.raises(ValueError, match=r"more than 3276 symmetries of the atoms \[1, 2, .*of_turning_bonds"):
        symmetries.groups(["U", *9 * "F"], [(0, i) for i in range(1, 10)])


def toy(count=6, torsions=3):
    """A few poses near one another."""
    one = poses.draw_prior(KEY, 1, torsions)
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), one._replace(translation=0 * one.translation))
    return poses.add_noise(KEY, same, Pose(jnp.asarray(1.0), jnp.asarray(0.6), jnp.asarray(0.7)))


def test_the_exact_noise_prediction_is_the_gradient_of_the_log_density(float64):
    data = jax.tree.map(lambda leaf: leaf.astype(float), toy())
    pose = jax.tree.map(lambda leaf: leaf.astype(float), poses.draw_prior(jax.random.key(1), 4, 3))
    t = Pose(jnp.asarray(0.5), jnp.asarray(0.7), jnp.asarray(0.6))
    sigmas = NOISE.sigmas(t)

    def log_density(update, pose):
        return poses.log_density(data, poses.retract(pose, update), sigmas)

    still = jax.tree.map(jnp.zeros_like, poses.difference(pose, pose))
    score = jax.jit(jax.vmap(jax.grad(log_density)))(still, pose)
    eps = jax.jit(poses.noise_model(data, NOISE))(pose, t)
    chex.assert_trees_all_close(eps, jax.tree.map(lambda sigma, part: -sigma * part, sigmas, score), rtol=1e-8)


def test_many_small_steps_end_where_the_data_are():
    data, count = toy(torsions=1), 300
    x_T = poses.draw_prior(jax.random.key(3), count, 1)
    t = grid("uniform", NOISE, 200)
    end = jax.jit(lambda x: solvers.sample(poses.noise_model(data, NOISE), NOISE, x, t, solver="ddim"))(x_T)
    around = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], (6, count, *leaf.shape[1:])), data)
    each = jax.jit(jax.vmap(partial(poses.difference, end)))(around)
    scaled = jax.tree.map(lambda leaf, sigma: ((leaf / sigma) ** 2).sum(-1), each, NOISE.sigmas(jnp.asarray(0.0)))
    squared = np.sort(sum(scaled), axis=0), np.argmin(sum(scaled), axis=0)
    assert stats.chisquare(np.bincount(squared[1], minlength=6)).pvalue > 0.01
    # Around the nearest pose lies the last noise: seven squares of standard normal numbers.
    assert stats.kstest(squared[0][0], stats.chi2(7).cdf).pvalue > 0.01


@pytest.mark.parametrize(("solver", "order", "expected"), [("ipndm", 2, 2.0), ("dpmpp", 2, 2.0), ("heun", 2, 2.0)])
def test_error_falls_at_the_solvers_order_on_the_manifold(solver, order, expected, float64):
    """Rotations do not commute, but the memory of past updates is in the body's frame, which costs no order up to 2."""
    data, x_T = (jax.tree.map(lambda leaf: leaf.astype(float), tree) for tree in (toy(), poses.draw_prior(KEY, 4, 3)))
    # Below the smallest distance of the data the problem is stiff; up to here it is smooth.
    noise = poses.PoseNoise(
        poses.TranslationNoise(0.5, 19.0), poses.RotationNoise(0.15, 1.55), poses.TorsionNoise(0.15, 3.14)
    )
    model = poses.noise_model(data, noise)

    solve = jax.jit(partial(solvers.solve, retract=poses.retract, remat=False))
    tangent = noise.space.tangent(x_T)

    def run(name, order, n):
        n_steps = n // 2 if name == "heun" else n
        t = grid("uniform", noise, n_steps).astype(float)
        table = jax.jit(partial(solvers.make_table, noise, solver=Solver(name, None, order)))(t)
        return solve(model, table, x_T, update_like=tangent)

    exact = run("heun", 2, 640)
    errors = []
    for n in (40, 80):
        apart = poses.difference(run(solver, order, n), exact)
        errors.append(math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(apart))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.15)


def test_a_solver_for_data_takes_noise_on_a_manifold_and_is_the_same_in_a_vector_space(float64):
    part = NOISE.translation
    t = grid("edm", part, 6).astype(float)
    updates = solvers.make_table(part, t, solver="unipc")
    plain = solvers.make_table(poses.pose.VEGeometric(0.1, 19.0), t, solver="unipc")
    data = solvers.converted(solvers.expand(plain), part, "data", "noise")
    chex.assert_trees_all_close(solvers.expand(updates), data, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(updates.predict_base, 1)
