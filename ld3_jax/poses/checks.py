"""What docking papers report of poses: distances to a reference, and PoseBusters' checks of chemistry and clashes."""

import logging
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ld3_jax.poses.molecules import Complex, needed, placed


class Share(NamedTuple):
    """A share of samples with its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits: Bool[np.ndarray, "n"]) -> Share:
    """How many of the samples, with Wilson's interval.

    Reference: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    count, value, z = len(hits), float(np.mean(hits)), 1.96
    centre = (value + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
    return Share(value, max(0.0, centre - half), min(1.0, centre + half))


def median(values: Float[np.ndarray, "n"]) -> Share:
    """The median with its 95 % interval by order statistics, which assumes nothing of the distribution."""
    ordered, count = np.sort(values), len(values)
    half = 1.96 * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    return Share(float(np.median(values)), float(ordered[low]), float(ordered[high]))


def passes(
    found: Complex, positions: Float[np.ndarray, "k n 3"], *, config: str = "dock_fast"
) -> Bool[np.ndarray, "k"]:
    """Which poses pass every one of PoseBusters' checks of a pose in a protein, here in its pocket.

    Args:
        found: the complex.
        positions: of its ligand's atoms.
        config: of PoseBusters; "dock" has checks of the energy, too, which take seconds a pose.

    Raises:
        ImportError: if the extra `docking` is not installed.

    Reference: Buttenschoen et al., arXiv:2308.05777.
    """
    busters, chem = needed("posebusters"), needed("rdkit.Chem")
    logging.getLogger("posebusters").setLevel(logging.ERROR)
    with needed("rdkit.rdBase").BlockLogs():
        protein = chem.MolFromPDBBlock(found.protein, sanitize=False, proximityBonding=False)
        table: Any = busters.PoseBusters(config).bust(placed(found, positions), None, protein)
    return np.asarray(table.to_numpy(bool).all(-1))
