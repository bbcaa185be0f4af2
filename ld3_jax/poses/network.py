"""A score network of a ligand's poses in its pocket: messages of scalars and vectors between atoms.

All features are made from distances and differences of positions, so that moving, turning or mirroring ligand and
pocket together does the same to the scores. The network gives each atom forces: their mean is the score of the
translation, their torque about the centre is the score of the rotation, and their torque about a bond the score of its
torsion.

Reference: Schütt et al., arXiv:2102.03150 (scalars and vectors); Corso et al., arXiv:2210.01776 (outputs in units of
the kernels' scores); Karras et al., arXiv:2206.00364 (the translation's scaling).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.disk import write_atomically
from ld3_jax.networks import files, weights
from ld3_jax.poses import kernels, molecules, rotations
from ld3_jax.poses.ligand import Ligand, atoms
from ld3_jax.poses.molecules import Complex
from ld3_jax.poses.pose import Pose, PoseNoise

ERGOTAMINE = Path(__file__).with_name("ergotamine.safetensors")  # as experiments.train_poses wrote it
ELEMENTS = ("C", "N", "O", "S")  # all others share one column
_NEAREST, _FURTHEST = 1.0, 60.0  # angstrom, of the functions of distance
_FADE = 4.0  # angstrom: messages from further away weigh less
_SOFT = 0.05  # square angstrom: smooths distances at 0
_SPREAD = 1.0  # angstrom, of the data about the centre that the network finds
_ARM = 4.0  # angstrom, by which torques are divided
_WAVES = 4  # of a time's embedding
_ANGLES = 256  # of the integrals of squared scores


class Context(NamedTuple):
    """What a score network knows besides a pose; coordinates in angstrom, in the frame of the poses.

    Attributes:
        ligand: the molecule; its reference conformer tells the atoms apart.
        elements: (n, 5) one-hot elements of its atoms.
        pocket: (p, 3) atoms of the protein.
        pocket_elements: (p, 5) likewise.
    """

    ligand: Ligand
    elements: Float[Array, "n 5"]
    pocket: Float[Array, "p 3"]
    pocket_elements: Float[Array, "p 5"]


def make_context(
    ligand: Ligand,
    elements: Sequence[str],
    pocket: Float[np.ndarray, "p 3"],
    pocket_elements: Sequence[str],
    nearest: int = 128,
) -> Context:
    """A ligand and the atoms of its pocket that are nearest to its reference conformer at the origin.

    Args:
        ligand: the molecule.
        elements: symbols of its atoms.
        pocket: atoms of the protein, in angstrom.
        pocket_elements: their symbols.
        nearest: how many atoms of the pocket are kept, at most.
    """
    apart = np.linalg.norm(pocket[:, None] - np.asarray(ligand.positions)[None], axis=-1).min(1)
    kept = np.sort(np.argsort(apart, kind="stable")[:nearest])
    near = jnp.asarray(pocket[kept], jnp.result_type(float))
    return Context(ligand, _one_hot(elements), near, _one_hot(np.asarray(list(pocket_elements))[kept].tolist()))


def context_of(found: Complex) -> Context:
    """The context of a complex."""
    return make_context(found.ligand, molecules.elements(found.molecule), found.pocket, found.pocket_elements)


class _Shape(nn.Module):
    """A description of each atom of a rigid set, from elements and distances."""

    hidden: int
    bases: int
    rounds: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "n 3"], elements: Float[Array, "n 5"]) -> Float[Array, "n c"]:
        near, h = _near(x, x, self.bases), nn.Dense(self.hidden, name="elements")(elements)
        for i in range(self.rounds):
            sums = jnp.einsum("ijk,jc->ikc", near, h).reshape(len(x), -1)
            seen = nn.LayerNorm(name=f"norm{i}")(jnp.concatenate([h, nn.Dense(self.hidden, name=f"sums{i}")(sums)], -1))
            seen = nn.silu(nn.Dense(2 * self.hidden, name=f"in{i}")(seen))
            h = h + nn.Dense(self.hidden, name=f"out{i}")(seen)
        return h


class _Messages(nn.Module):
    """Scalars and vectors of a ligand's atoms after messages between them."""

    hidden: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n 3"],
        near: Float[Array, "n n k"],
        time: Float[Array, "waves"],
        h: Float[Array, "n c"],
        v: Float[Array, "n 3 c"],
    ) -> tuple[Float[Array, "n c"], Float[Array, "n 3 c"]]:
        sent = nn.Dense(self.hidden, name="values")(h)
        scalars, vectors = _gathered(near, sent, x, x)
        own = nn.Dense(self.hidden, use_bias=False, name="sent")(v)
        vectors = vectors + jnp.einsum("ijk,jdc->idkc", near, own)
        scalars = nn.Dense(self.hidden, name="scalars")(scalars.reshape(len(x), -1))
        vectors = nn.Dense(self.hidden, use_bias=False, name="vectors")(vectors.reshape(len(x), 3, -1))
        left, right = jnp.split(nn.Dense(2 * self.hidden, use_bias=False, name="pairs")(v), 2, -1)
        length = jnp.sqrt(jnp.sum(vectors**2, 1) + _SOFT)
        seen = [h, scalars, jnp.sum(left * right, 1), jnp.sum(vectors * right, 1), length]
        seen = nn.LayerNorm(name="norm")(jnp.concatenate(seen, -1))
        seen = nn.silu(nn.Dense(2 * self.hidden, name="in")(seen) + nn.Dense(2 * self.hidden, name="time")(time)[None])
        change, of_own, of_others = jnp.split(nn.Dense(3 * self.hidden, name="out")(seen), 3, -1)
        return h + change, v + of_own[:, None] * left + of_others[:, None] * vectors


class PoseNet(nn.Module):
    """The noise eps in a pose.

    Attributes:
        hidden: channels of an atom's scalars and of its vectors.
        layers: layers of messages between the ligand's atoms.
        bases: functions of distance that weigh messages.
    """

    hidden: int = 32
    layers: int = 3
    bases: int = 16

    @nn.compact
    def __call__(self, context: Context, pose: Pose, x: Float[Array, "n 3"], t: Pose, sigmas: Pose) -> Pose:
        """eps for one pose, an update with a rotation vector in the body's frame.

        Args:
            context: ligand and pocket.
            pose: translation (3,), rotation (4,), torsions (m,).
            x: the ligand's atoms in it.
            t: a time in [0, 1] for each part.
            sigmas: the noise of each part.
        """
        ligand, pocket = context.ligand, context.pocket
        h = _Shape(self.hidden, self.bases, name="ligand")(ligand.positions, context.elements)
        of_pocket = _Shape(self.hidden, self.bases, name="pocket")(pocket, context.pocket_elements)
        centre = jax.nn.softmax(nn.Dense(1, name="centre")(of_pocket)[:, 0]) @ pocket
        time = jnp.concatenate([_waves(part) for part in t])

        sent = nn.Dense(self.hidden, name="values")(of_pocket)
        scalars, vectors = _gathered(_near(x, pocket, self.bases), sent, x - centre[None], pocket - centre[None])
        h = h + nn.Dense(self.hidden, name="scalars")(scalars.reshape(len(x), -1))
        v = nn.Dense(self.hidden, use_bias=False, name="vectors")(vectors.reshape(len(x), 3, -1))

        arms, near = x - pose.translation[None], _near(x, x, self.bases)
        for i in range(self.layers):
            h, v = _Messages(self.hidden, name=f"layer{i}")(arms, near, time, h, v)
        gates = nn.Dense(4 * self.hidden, name="gates")(nn.LayerNorm(name="norm")(h))
        gated = v[..., None, :] * gates.reshape(len(x), 1, 4, self.hidden)
        kinds = self.param("kernel", nn.initializers.lecun_normal(), (self.hidden, 4))
        forces = jnp.moveaxis(jnp.einsum("ndfc,cf->ndf", gated, kinds), -1, 0)
        return _eps(context.ligand, pose, x, forces, centre, sigmas)


def noise_model(params: PyTree, context: Context, noise: PoseNoise) -> Partial:
    """A trained network as a model.

    Args:
        params: parameters of a `PoseNet` of any size.
        context: ligand and pocket.
        noise: the noise of the poses.

    Returns:
        model(poses, t, cond) -> eps, as in `poses.noise_model`; cond is not used.
    """
    return Partial(_predicted, noise, params, context)


def read(path: Path, context: Context) -> PyTree:
    """The parameters in a file that `write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or not of this network; the message names the file.
    """
    return weights.fill(shapes(context), files.read(path).state, str(path))


def write(path: Path, params: PyTree) -> None:
    """Write parameters as safetensors, in half precision.

    Raises:
        OSError: if they cannot be written to the disk.
    """
    state = {name: np.ascontiguousarray(array, np.float16) for name, array in weights.published(params).items()}
    write_atomically(path, safetensors.numpy.save(state))


def shapes(context: Context, network: PoseNet | None = None) -> PyTree:
    """The shapes of the parameters of a network; None: of the default size."""
    return weights.abstract(network or PoseNet(), context, *_example(context))


def predict(params: PyTree, context: Context, noise: PoseNoise, poses: Pose, t: Pose) -> Pose:
    """eps in a batch of poses, each with a time (batch,) for each part."""
    apply: Any = _network(params).apply
    x, sigmas = atoms(context.ligand, poses), noise.sigmas(t)
    return jax.vmap(lambda *of_one: apply({"params": params}, context, *of_one))(poses, x, t, sigmas)


def units(sigmas: Pose) -> Pose:
    """Root mean square per component of each kernel's eps = -sigma score; near 1 for little noise, near 0 for much."""
    angles = jnp.asarray((np.arange(_ANGLES) + 0.5) / _ANGLES, jnp.result_type(float))

    def mean_square(angle: Array, log_density: Array, score: Array) -> Array:
        share = jax.nn.softmax(log_density)
        return share @ score**2

    angle = jnp.minimum(math.pi, 8 * sigmas.rotation) * angles
    v = angle[:, None] * jnp.eye(3, 1, dtype=angle.dtype)[:, 0][None]
    value, score = kernels.igso3(v, sigmas.rotation)
    rotation = mean_square(angle, value + 2 * jnp.log(jnp.sin(angle / 2)), score[:, 0]) / 3
    angle = jnp.minimum(math.pi, 8 * sigmas.torsions) * angles
    torsions = mean_square(angle, *kernels.wrapped_normal(angle, sigmas.torsions))
    return Pose(
        _SPREAD / jnp.sqrt(sigmas.translation**2 + _SPREAD**2),
        sigmas.rotation * jnp.sqrt(rotation),
        sigmas.torsions * jnp.sqrt(torsions),
    )


def _predicted(
    noise: PoseNoise, params: PyTree, context: Context, x: Pose, t: Pose | Float[Array, ""], cond: PyTree = None
) -> Pose:
    times = t if isinstance(t, Pose) else Pose(t, t, t)
    count = len(x.translation)
    times = jax.tree.map(lambda one: jnp.broadcast_to(one, (count,)), times)
    return predict(params, context, noise, x, times)


def _network(params: PyTree) -> PoseNet:
    """The network that has these parameters."""
    of_bases, hidden = params["scalars"]["kernel"].shape
    return PoseNet(hidden, sum(name.startswith("layer") for name in params), of_bases // hidden)


def _eps(ligand: Ligand, pose: Pose, x: Array, forces: Array, centre: Array, sigmas: Pose) -> Pose:
    """The mean force, torques about the centre and about each bond, each in the units of its part."""
    unit = units(sigmas)
    arms = x - pose.translation[None]
    pull = sigmas.translation / (sigmas.translation**2 + _SPREAD**2) * (pose.translation - centre)
    torque = jnp.cross(arms, forces[1]).mean(0, keepdims=True) / _ARM
    begin, end = (x[ligand.bonds[:, side]] for side in (0, 1))
    axis = (end - begin) / jnp.linalg.norm(end - begin, axis=-1, keepdims=True)
    about = x[None] - end[:, None]
    twist = jnp.zeros(len(axis), x.dtype)
    for kind, side in ((2, ligand.turned), (3, ~ligand.turned)):
        each = jnp.sum(jnp.cross(about, jnp.broadcast_to(forces[kind][None], about.shape)) * axis[:, None], -1)
        twist = twist + jnp.sum(each * side, -1) / jnp.sum(side, -1) / _ARM
    return Pose(
        pull + unit.translation * forces[0].mean(0),
        unit.rotation * rotations.rotate(rotations.inverse(pose.rotation), torque)[0],
        unit.torsions * twist,
    )


def _gathered(near: Array, sent: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """sum_j near_ijk sent_jc, (n, k, c), and sum_j near_ijk sent_jc (x_i - y_j), (n, 3, k, c).

    As sums over sent and over sent times y, so that no array holds a vector for each pair of atoms.
    """
    scalars = jnp.einsum("ijk,jc->ikc", near, sent)
    moments = jnp.einsum("ijk,jdc->idkc", near, sent[:, None] * y[..., None])
    return scalars, x[..., None, None] * scalars[:, None] - moments


def _near(x: Array, y: Array, bases: int) -> Array:
    """Functions of the distances (n, p, k): bell curves over the log of the distance that fade with distance."""
    apart = jnp.sqrt(jnp.sum((x[:, None] - y[None]) ** 2, -1) + _SOFT)[..., None]
    centres = np.linspace(math.log(_NEAREST), math.log(_FURTHEST), bases)
    offset = (jnp.log(apart) - jnp.asarray(centres, x.dtype)[None, None]) / float(centres[1] - centres[0])
    return jnp.exp(-0.5 * offset**2) * _FADE / (_FADE + apart) / math.sqrt(len(y))


def _waves(t: Array) -> Array:
    angles = math.pi * t * jnp.arange(1, _WAVES + 1)
    return jnp.concatenate([t[None], jnp.sin(angles), jnp.cos(angles)])


def _one_hot(elements: Sequence[str]) -> Array:
    columns = [ELEMENTS.index(one.upper()) if one.upper() in ELEMENTS else len(ELEMENTS) for one in elements]
    return jax.nn.one_hot(jnp.asarray(columns), len(ELEMENTS) + 1)


def _example(context: Context) -> tuple[Pose, Array, Pose, Pose]:
    """Arguments of the network besides the context."""
    one, torsions = jnp.ones(()), jnp.zeros(len(context.ligand.bonds))
    times = Pose(one, one, one)
    return Pose(jnp.zeros(3), rotations.identity(), torsions), context.ligand.positions, times, times
