"""Several processes of JAX's distributed runtime: the first one alone reads and writes the files that all go on from.

All processes run the same program on a mesh of all their devices, so a value is the same in each of them; what differs
is the disk. With one process, nothing here does anything.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def of_first(tree: PyTree) -> PyTree:
    """The tree of the first process, in every process, on the host.

    Args:
        tree: numbers and arrays that are whole in each process; of the others only structure, shapes and dtypes count.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
