"""Real molecules: a ligand with its poses in a pocket, from files that two packages ship; and SDF files.

It needs the extra `docking` (RDKit; MDAnalysis and ProLIF's trajectory, or the crystal complexes of PoseBusters), which
nothing else in the library imports.
"""

import importlib.util
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.extras import load as needed
from ld3_jax.poses import rotations
from ld3_jax.poses.kernels import wrap
from ld3_jax.poses.ligand import (
    Ligand,
    alignment,
    atoms,
    check_apart,
    mean_square,
    of_turning_bonds,
    turned_conformer,
    turning_bonds,
)
from ld3_jax.poses.pose import Pose

TRAJECTORY = "ergotamine"  # of ProLIF: 250 poses in the serotonin receptor 5-HT1B
CRYSTALS = ("1ia1", "1of6", "1s3v", "1uou")  # of PoseBusters, by their code in the Protein Data Bank
_POCKET_WITHIN = 8.0  # angstrom from the ligand
_FIT_STEPS, _DAMPING = 10, 1.0  # of the fit of torsions; the damping in square angstrom


class Complex(NamedTuple):
    """A ligand in its pocket. Coordinates have their origin at the centre of the ligand's most central pose.

    Attributes:
        name: the name of the complex.
        molecule: RDKit's molecule of the heavy atoms.
        ligand: the same in the form for poses; its reference conformer is the most central pose's.
        poses: (k, ...) known poses.
        fit: (k,) how far each pose is from the atoms that it was taken from, as RMSD in angstrom.
        pocket: (n, 3) heavy atoms of the protein near the ligand, at the moment of the most central pose.
        pocket_elements: their symbols.
        protein: the same as the text of a PDB file, in the coordinates of the package's files.
        origin: (3,) the origin in those coordinates.
    """

    name: str
    molecule: Any
    ligand: Ligand
    poses: Pose
    fit: Float[np.ndarray, "k"]
    pocket: Float[np.ndarray, "n 3"]
    pocket_elements: list[str]
    protein: str
    origin: Float[np.ndarray, "3"]


def load(name: str) -> Complex:
    """A complex by name: TRAJECTORY, or one of CRYSTALS.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the extra `docking` is not installed; it says how to install it.
    """
    if name == TRAJECTORY:
        return _trajectory()
    if name in CRYSTALS:
        return _crystal(name)
    raise ValueError(f"a complex is one of {[TRAJECTORY, *CRYSTALS]}, got {name!r}")


def read_sdf(path: str | Path) -> tuple[Any, Float[np.ndarray, "k n 3"]]:
    """The heavy atoms of the molecule in an SDF file, and their coordinates in each of its records.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a record is damaged, flat, or of another molecule than the first.
        ImportError: if the extra `docking` is not installed.
    """
    chem = needed("rdkit.Chem")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with needed("rdkit.rdBase").BlockLogs():
        records = list(chem.ForwardSDMolSupplier(io.BytesIO(path.read_bytes())))
    if not records or None in records:
        which = records.index(None) + 1 if records else 1
        raise ValueError(f"{path}: record {which} is not a molecule that RDKit can read")
    molecules = [chem.RemoveHs(record) for record in records]
    graphs = [(chem.MolToSmiles(one), elements(one), sorted(map(sorted, bonds(one)))) for one in molecules]
    for i, (molecule, graph) in enumerate(zip(molecules, graphs, strict=True), 1):
        if graph != graphs[0]:
            two = f"{graph[0]} and {graphs[0][0]}"
            raise ValueError(
                f"{path}: record {i} is another molecule than the first, or its atoms are reordered: {two}"
            )
        conformer = molecule.GetConformer()
        if not conformer.Is3D() or (len(graph[1]) > 3 and not np.ptp(conformer.GetPositions()[:, 2])):
            raise ValueError(f"{path}: record {i} is flat, a drawing; poses need coordinates in three dimensions")
    return molecules[0], np.stack([molecule.GetConformer().GetPositions() for molecule in molecules])


def sdf(found: Complex, positions: Float[np.ndarray, "k n 3"]) -> bytes:
    """An SDF file with the ligand at each of the positions, in the coordinates of the protein's file."""
    chem = needed("rdkit.Chem")
    text = io.StringIO()
    writer = chem.SDWriter(text)
    for i, record in enumerate(placed(found, positions)):
        record.SetProp("_Name", f"{found.name} {i + 1}")
        writer.write(record)
    writer.close()
    return text.getvalue().encode()


def bonds(molecule: Any) -> list[tuple[int, int]]:
    """The pairs of atoms that the bonds of RDKit's molecule join."""
    return [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]


def placed(found: Complex, positions: Float[np.ndarray, "k n 3"]) -> list[Any]:
    """RDKit's molecule with its atoms at each of the positions, in the coordinates of the protein's file."""
    chem, geometry = needed("rdkit.Chem"), needed("rdkit.Geometry")
    copies = []
    for one in np.asarray(positions, float) + found.origin:
        copy = chem.Mol(found.molecule)
        for i, xyz in enumerate(one):
            copy.GetConformer().SetAtomPosition(i, geometry.Point3D(*map(float, xyz)))
        copies.append(copy)
    return copies


def elements(molecule: Any) -> list[str]:
    """Symbols of the atoms of RDKit's molecule."""
    return [atom.GetSymbol() for atom in molecule.GetAtoms()]


def to_ligand(molecule: Any, positions: Float[np.ndarray, "n 3"]) -> Ligand:
    """A ligand from RDKit's molecule: single bonds outside rings turn; symmetries depend only on elements and bonds.

    A carboxylate's oxygens count as equal, however they are drawn.

    Raises:
        ValueError: if the molecule is in pieces, has no coordinates, or too many symmetries that are not independent.
    """
    from ld3_jax.poses import symmetries  # with SciPy's graphs, which nothing else needs

    every = bonds(molecule)
    single = {
        frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        for bond in molecule.GetBonds()
        if bond.GetBondType() == needed("rdkit.Chem").BondType.SINGLE
    }
    turning = [bond for bond in turning_bonds(len(positions), every) if frozenset(bond) in single]
    labels = [f"{atom.GetIsotope()}{atom.GetSymbol()}" for atom in molecule.GetAtoms()]
    return of_turning_bonds(positions, turning, every, symmetries.groups(labels, every))


def to_poses(ligand: Ligand, positions: Float[np.ndarray, "k n 3"]) -> tuple[Pose, Float[np.ndarray, "k"]]:
    """The pose nearest to each of the positions, and its RMSD from them.

    The torsions start from the differences of dihedral angles to the reference conformer, and a few damped steps of
    Gauss-Newton follow. What remains is the change of bond lengths, bond angles and rings.

    Raises:
        ValueError: if two atoms are at one place, or a coordinate is not finite.
    """
    for one in positions:
        check_apart(one)

    def placed(torsions: Array, x: Array) -> tuple[Array, Array]:
        turned = turned_conformer(ligand, torsions)
        rotation = alignment(turned, x - x.mean(0, keepdims=True))
        return rotation, rotations.rotate(rotation, turned) + x.mean(0, keepdims=True)

    @jax.vmap
    def pose(x: Array) -> Pose:
        def step(torsions: Array, _: None) -> tuple[Array, None]:
            def residuals(torsions: Array) -> tuple[Array, Array]:
                r = (placed(torsions, x)[1] - x).ravel()
                return r, r

            jacobian, r = jax.jacfwd(residuals, has_aux=True)(torsions)
            damped = jacobian.T @ jacobian + _DAMPING * jnp.eye(len(torsions))
            return torsions - jnp.linalg.solve(damped, jacobian.T @ r), None

        torsions = _dihedrals(ligand, x) - _dihedrals(ligand, ligand.positions)
        if torsions.size:
            torsions, _ = jax.lax.scan(step, torsions, None, length=_FIT_STEPS)
        return Pose(x.mean(0), placed(torsions, x)[0], wrap(torsions))

    x = jnp.asarray(positions, jnp.result_type(float))
    found = jax.jit(pose)(x)
    return found, np.sqrt(np.asarray(jax.jit(mean_square(ligand))(atoms(ligand, found), x)))


def _trajectory() -> Complex:
    """ProLIF's molecular dynamics, every frame aligned on the alpha carbons of the pocket."""
    mda = needed("MDAnalysis")
    align, chem = needed("MDAnalysis.analysis.align"), needed("rdkit.Chem")
    folder = _package("prolif") / "data"
    universe = mda.Universe(str(folder / "top.pdb"), str(folder / "traj.xtc"))
    ligand_atoms = universe.select_atoms("resname LIG")
    near = universe.select_atoms(f"protein and byres around {_POCKET_WITHIN} resname LIG")
    carbons, heavy = near.select_atoms("name CA"), near.select_atoms("not element H")
    molecule = chem.RemoveHs(ligand_atoms.convert_to("RDKIT"))
    order = [atom.GetIntProp("_MDAnalysis_index") for atom in molecule.GetAtoms()]
    reference = carbons.positions.astype(float)
    frames, pockets = [], []
    for _ in universe.trajectory:
        now = carbons.positions.astype(float)
        rotation, _ = align.rotation_matrix(now - now.mean(0), reference - reference.mean(0))
        for group, places in ((ligand_atoms.positions[order], frames), (heavy.positions, pockets)):
            places.append((group - now.mean(0)) @ rotation.T + reference.mean(0))
    return _complex(TRAJECTORY, molecule, np.stack(frames), heavy, np.stack(pockets))


def _crystal(name: str) -> Complex:
    """One of PoseBusters' complexes; its known pose is the crystal's."""
    mda = needed("MDAnalysis")
    folder = _package("posebusters") / "datasets" / "pdb" / name
    molecule, positions = read_sdf(folder / f"{name}_ligand.sdf")
    heavy = mda.Universe(str(folder / f"{name}_protein_one_lig_removed.pdb")).select_atoms("protein and not element H")
    apart = np.stack([np.linalg.norm(heavy.positions - atom[None], axis=-1) for atom in positions[0]])
    near = heavy[apart.min(0) < _POCKET_WITHIN].residues.atoms & heavy
    return _complex(name, molecule, positions, near, near.positions[None].astype(float))


def _complex(name: str, molecule: Any, positions: np.ndarray, atom_group: Any, pockets: np.ndarray) -> Complex:
    """A complex from the positions of the ligand's and the pocket's atoms, at the same moments."""
    central = _most_central(positions)
    origin = positions[central].mean(0)
    ligand = to_ligand(molecule, positions[central])
    poses, fit = to_poses(ligand, positions - origin)
    pocket, symbols = pockets[central], list(atom_group.elements)
    return Complex(name, molecule, ligand, poses, fit, pocket - origin, symbols, _pdb(atom_group, pocket), origin)


def _pdb(atom_group: Any, positions: np.ndarray) -> str:
    """Atoms in the columns of a PDB file."""
    lines = []
    for i, (atom, (x, y, z)) in enumerate(zip(atom_group, positions, strict=True)):
        name = atom.name if len(atom.name) > 3 else f" {atom.name}"
        lines.append(
            f"ATOM  {i + 1:5d} {name:<4} {atom.resname[:3]:>3} {atom.segid[:1]:1}{atom.resid % 10000:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {atom.element:>2}"
        )
    return "\n".join([*lines, "END", ""])


def _most_central(positions: np.ndarray) -> int:
    """The one with the least mean squared distance from all others."""
    return int(np.argmin(((positions - positions.mean(0)) ** 2).sum((1, 2))))


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        needed(name)
        raise ImportError(f"the package {name} has no folder")
    return Path(found.origin).parent


def _dihedrals(ligand: Ligand, x: Float[Array, "n 3"]) -> Float[Array, "m"]:
    """The angle about each turning bond between a neighbour of either end, in radians."""
    if not len(ligand.bonds):
        return jnp.zeros(0, x.dtype)
    a, b = ligand.bonds.T
    # Any atom next to each end will do if it is not on the axis: take the nearest of its own piece.
    near, far = (_nearest(ligand, end, own) for end, own in ((a, ~ligand.turned), (b, ligand.turned)))
    first, axis, last = x[a] - x[near], x[b] - x[a], x[far] - x[b]
    normal, other = jnp.cross(first, axis), jnp.cross(axis, last)
    unit = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
    return jnp.arctan2(jnp.sum(jnp.cross(normal, other) * unit, -1), jnp.sum(normal * other, -1))


def _nearest(ligand: Ligand, end: Array, own: Array) -> Array:
    apart = jnp.linalg.norm(ligand.positions[end][:, None] - ligand.positions[None], axis=-1)
    itself = end[:, None] == jnp.arange(len(ligand.positions))[None]
    return jnp.argmin(jnp.where(own & ~itself, apart, jnp.inf), -1)
