"""What docking papers report of poses: distances to a reference, and PoseBusters' checks of chemistry and clashes."""

import logging
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ld3_jax.extras import load as needed
from ld3_jax.metrics import Interval
from ld3_jax.poses.molecules import Complex, placed


def median(values: Float[np.ndarray, "n"]) -> Interval:
    """The median with its 95 % interval by order statistics, which assumes nothing of the distribution."""
    ordered, count = np.sort(values), len(values)
    half = 1.96 * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    return Interval(float(np.median(values)), float(ordered[low]), float(ordered[high]))


def passes(
    found: Complex, positions: Float[np.ndarray, "k n 3"], *, config: str = "dock_fast"
) -> Bool[np.ndarray, "k"]:
    """Which poses pass every one of PoseBusters' checks of a pose in a protein, here in its pocket.

    Args:
        found: the complex.
        positions: the positions of its ligand's atoms.
        config: the configuration of PoseBusters; "dock" also checks the energy, which takes seconds for each pose.

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
