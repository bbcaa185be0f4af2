"""Several processes of JAX's distributed runtime: only the first one reads and writes the files that all depend on.

All processes run the same program on a mesh of all their devices, so a value is the same in each of them; only the disk
differs. With one process, nothing here does anything.
"""

import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

_PROCESSES_OF_A_NODE = ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")  # in SLURM "8(x4)", on four nodes


def join() -> None:
    """Connect to the other processes of this command, before any other use of JAX; only the first process prints.

    SLURM, Open MPI, Kubernetes and TPU pods say which they are; elsewhere JAX_COORDINATOR_ADDRESS (host:port of process
    0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ValueError: if they are not known.
    """
    names = ("num_processes", "process_id")
    try:
        given: dict[str, Any] = {
            name: int(os.environ[f"JAX_{name.upper()}"]) for name in names if f"JAX_{name.upper()}" in os.environ
        }
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{error} (python -m ... --help says who tells the processes)") from error
    alone = "1" in (os.environ.get(name, "").split("(")[0] for name in _PROCESSES_OF_A_NODE)
    if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ:  # JAX gives each process one GPU
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def of_first(tree: PyTree) -> PyTree:
    """The tree of the first process, in every process, on the host.

    Args:
        tree: numbers and arrays that are whole in each process; of all but the first, only structure, shapes and
            dtypes matter.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
