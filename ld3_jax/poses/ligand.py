"""The atoms of a ligand in a pose, and the distance between two poses.

A pose acts on a reference conformer: its bonds turn by the torsions, the rigid motion that this causes is removed, then
the whole is rotated about its centre and moved.

Reference: Corso et al., arXiv:2210.01776, section 4.1; Horn, J. Opt. Soc. Am. A 4 (1987) (alignment by quaternions).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from ld3_jax.losses import Loss
from ld3_jax.poses import rotations
from ld3_jax.poses.pose import Pose

Orders = Int[Array | np.ndarray, "_ n"]
Groups = Sequence[tuple[Orders, Sequence[Orders]]]


class Ligand(NamedTuple):
    """A molecule as poses need it; see `make_ligand`.

    Attributes:
        positions: (n, 3) atoms of the reference conformer in angstrom, centred on their mean.
        bonds: (m, 2) atoms a, b of each bond that turns.
        turned: (m, n) the atoms on b's side of each bond, which turn.
        symmetries: groups of orders under which the molecule is the same, which are independent: all are products of
            one order of each. The orders of a group are i -> frame[swap_1[... swap_k[i]]], for one of its frames (r, n)
            and one of each of its k swaps (s, n), the identity first.
    """

    positions: Float[Array, "n 3"]
    bonds: Int[Array, "m 2"]
    turned: Bool[Array, "m n"]
    symmetries: Groups


def make_ligand(
    positions: Float[np.ndarray, "n 3"], bonds: Sequence[tuple[int, int]], symmetries: Sequence[Sequence[int]] = ()
) -> Ligand:
    """A ligand from its atoms and all its bonds.

    A bond turns if without it the molecule falls into two pieces of two atoms or more; the smaller piece turns.

    Args:
        positions: the positions of at least one atom, in angstrom.
        bonds: pairs of atoms; double bonds may be left out of `turning`, see `turning_bonds`.
        symmetries: orders of the atoms under which the molecule is the same.

    Raises:
        ValueError: if there is no atom, a bond or a symmetry names atoms that are not there, the molecule is in pieces,
            or two atoms are at one place.
    """
    count = len(positions)
    orders = [tuple(range(count)), *(tuple(order) for order in symmetries)]
    for order in orders:
        if sorted(order) != list(range(count)):
            raise ValueError(f"a symmetry is an order of the {count} atoms, got {order}")
    frames = np.array(orders, int).reshape(len(orders), count)
    return of_turning_bonds(positions, turning_bonds(count, bonds), bonds, [(frames, [])])


def of_turning_bonds(
    positions: Float[np.ndarray, "n 3"],
    turning: Sequence[tuple[int, int]],
    bonds: Sequence[tuple[int, int]],
    symmetries: Groups = (),
) -> Ligand:
    """A ligand in which only these bonds turn, with groups of symmetries; see `make_ligand` and `Ligand`."""
    count = len(positions)
    if count < 1:
        raise ValueError("a ligand has at least 1 atom, got none")
    _check_atoms("bonds", bonds, count)
    if len(_piece(0, bonds, count)) != count:
        raise ValueError("the ligand must be one molecule: some atoms are not bonded to the others")
    check_apart(positions)
    ends, turned = [], np.zeros((len(turning), count), bool)
    for i, (a, b) in enumerate(turning):
        piece = _piece(b, [bond for bond in bonds if set(bond) != {a, b}], count)
        if 2 * len(piece) > count:
            a, b, piece = b, a, set(range(count)) - piece
        ends.append((a, b))
        turned[i, sorted(piece)] = True
    centred = np.asarray(positions, float) - np.mean(positions, 0)
    return Ligand(
        jnp.asarray(centred, jnp.result_type(float)),
        jnp.asarray(np.array(ends, np.int32).reshape(-1, 2)),
        jnp.asarray(turned),
        jax.tree.map(partial(jnp.asarray, dtype=jnp.int32), symmetries),
    )


def turning_bonds(count: int, bonds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bonds without which the molecule falls into two pieces of two atoms or more."""
    _check_atoms("bonds", bonds, count)
    found = []
    for a, b in bonds:
        piece = _piece(b, [bond for bond in bonds if set(bond) != {a, b}], count)
        if a not in piece and 2 <= len(piece) <= count - 2:
            found.append((a, b))
    return found


def atoms(ligand: Ligand, pose: Pose) -> Float[Array, "batch n 3"]:
    """Where the atoms are in each of a batch of poses, in angstrom."""
    return jax.vmap(partial(_atoms, ligand))(pose)


def turned_conformer(ligand: Ligand, torsions: Float[Array, "m"]) -> Float[Array, "n 3"]:
    """The reference conformer with its bonds turned, moved back onto it as a whole."""

    def turn(x: Array, bond: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (a, b), turned, angle = bond
        axis = x[b] - x[a]
        rotation = rotations.exp(angle * axis / jnp.linalg.norm(axis))
        moved = rotations.rotate(rotation, x - x[b][None]) + x[b][None]
        return jnp.where(turned[:, None], moved, x), None

    if not torsions.size:
        return ligand.positions
    x, _ = jax.lax.scan(turn, ligand.positions, (ligand.bonds, ligand.turned, torsions))
    return aligned(x, ligand.positions)


def aligned(x: Float[Array, "n 3"], reference: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Points moved as a rigid body to where they are nearest the reference in the mean square."""
    centre = reference.mean(0, keepdims=True)
    x = x - x.mean(0, keepdims=True)
    return rotations.rotate(alignment(x, reference - centre), x) + centre


def alignment(x: Float[Array, "n 3"], reference: Float[Array, "n 3"]) -> Float[Array, "4"]:
    """The rotation that takes centred points nearest to centred reference points.

    It is the eigenvector with the largest eigenvalue of a symmetric 4 x 4 matrix, so never a reflection.
    """
    s = jnp.einsum("ni,nj->ij", x, reference, precision="highest")
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = s
    matrix = jnp.stack(
        [
            jnp.stack([xx + yy + zz, yz - zy, zx - xz, xy - yx]),
            jnp.stack([yz - zy, xx - yy - zz, xy + yx, zx + xz]),
            jnp.stack([zx - xz, xy + yx, yy - xx - zz, yz + zy]),
            jnp.stack([xy - yx, zx + xz, yz + zy, zz - xx - yy]),
        ]
    )
    return _top_eigenvector(matrix)


def mean_square(ligand: Ligand) -> Loss:
    """The mean squared distance between the atoms of two poses, for the nearest symmetry, as a loss.

    loss(x, y) = min_s mean_i |x_i - y_s(i)|^2 for atoms x, y (batch, n, 3), in square angstrom: the squared RMSD.
    Groups move different atoms, so each has its own minimum, and so have the swaps of a group for each frame.
    """
    return Loss(Partial(_residuals, ligand.symmetries))


def _residuals(
    symmetries: Groups, x: Float[Array, "batch n 3"], y: Float[Array, "batch n 3"]
) -> list[Float[Array, "batch _"]]:
    """(x - y) / sqrt(n), with y in the order that is nearest to x."""

    def nearest(x: Array, y: Array) -> Array:
        apart, atoms = jnp.sum((x[:, None] - y[None]) ** 2, -1), jnp.arange(len(x))

        def best(orders: Array) -> Array:
            return orders[jnp.argmin(jnp.sum(apart[atoms[None], orders], -1))]

        order = atoms
        for frames, swaps in symmetries:
            tried = order[frames]
            for swap in swaps:
                tried = jax.vmap(lambda one, swap=swap: best(one[swap]))(tried)
            order = best(tried)
        return y[order]

    r = x - jax.vmap(nearest)(x, y)
    return [r.reshape(len(x), -1) / math.sqrt(x.shape[1])]


def _atoms(ligand: Ligand, pose: Pose) -> Array:
    x = turned_conformer(ligand, pose.torsions)
    return rotations.rotate(pose.rotation, x) + pose.translation[None]


@jax.custom_jvp
def _top_eigenvector(matrix: Array) -> Array:
    return jnp.linalg.eigh(matrix)[1][:, -1]


@_top_eigenvector.defjvp
def _top_eigenvector_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # eigh's own derivative is NaN where any two eigenvalues are equal; here only those equal to the largest matter, and
    # then the molecule is a line or a point, and which of the rotations is taken changes no atom.
    values, vectors = jnp.linalg.eigh(primals[0])
    gaps = values[-1] - values
    apart = gaps > 1e-5 * jnp.abs(values).max()
    inverse = jnp.where(apart, 1 / jnp.where(apart, gaps, 1.0), 0.0)
    top = vectors[:, -1]
    return top, vectors @ (inverse * (vectors.T @ (tangents[0] @ top)))


def check_apart(positions: Float[np.ndarray, "n 3"]) -> None:
    """Raise ValueError if two atoms are at the same place, as in a file without coordinates, or not at a finite one."""
    far = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    for i, j in np.argwhere(~(far > 0.01) & ~np.eye(len(far), dtype=bool)):
        raise ValueError(f"a ligand's atoms lie apart: got {positions[i]} of atom {i} and {positions[j]} of atom {j}")


def _piece(start: int, bonds: Sequence[tuple[int, int]], count: int) -> set[int]:
    """The atoms that are bonded to one atom."""
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in bonds:
        neighbours[a].append(b)
        neighbours[b].append(a)
    found, waiting = {start}, [start]
    while waiting:
        new = [atom for atom in neighbours[waiting.pop()] if atom not in found]
        found.update(new)
        waiting += new
    return found


def _check_atoms(what: str, bonds: Sequence[tuple[int, int]], count: int) -> None:
    for bond in bonds:
        if len(set(bond)) != 2 or not all(0 <= atom < count for atom in bond):
            raise ValueError(f"{what} join two of the {count} atoms, numbered from 0, got {bond}")
