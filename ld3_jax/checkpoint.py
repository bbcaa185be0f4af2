"""The state of learning on disk, which a killed run goes on from: one file of arrays for each of the latest states."""

import logging
from pathlib import Path

import jax
from jaxtyping import PyTree

from ld3_jax.disk import read_arrays, write_arrays

_KEEP = 2


def save(folder: Path, step: int, state: PyTree) -> None:
    """Keep a state; older ones than the one before it are deleted.

    At any moment, even if the process is killed, the files are whole.

    Args:
        folder: where the checkpoints lie; made if missing.
        step: the state's step.
        state: the state.

    Raises:
        OSError: if the disk does not take it; the message names the file, and earlier ones stay.
    """
    write_arrays(folder / f"{step:08d}.npz", _named(state))
    for path in _files(folder)[:-_KEEP]:
        path.unlink(missing_ok=True)


def restore(folder: Path, fresh: PyTree) -> PyTree:
    """The latest state that is whole; a damaged one is named in a warning, and an earlier one serves.

    Args:
        folder: where the checkpoints lie.
        fresh: a state of the same structure, shapes and dtypes, to return if there is none.
    """
    names, expected = zip(*_named(fresh).items(), strict=True)
    for path in reversed(_files(folder)):
        try:
            arrays = read_arrays(path, names)
            if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(arrays, expected, strict=True)):
                raise ValueError(f"{path} holds a state of other shapes")
        except ValueError as error:
            logging.getLogger(__name__).warning("%s; learning goes on from before it", error)
        else:
            leaves, structure = jax.tree.flatten(fresh)
            placed = [jax.device_put(a, leaf.sharding) for a, leaf in zip(arrays, leaves, strict=True)]
            return jax.tree.unflatten(structure, placed)
    return fresh


def _named(state: PyTree) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npz"))
