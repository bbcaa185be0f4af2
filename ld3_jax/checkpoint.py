"""Orbax checkpoints of the latest states of learning, from which a killed run continues."""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ld3_jax.batches import replicate
from ld3_jax.disk import naming, read_json, write_atomically
from ld3_jax.processes import is_first, of_first

_KEEP, _ROOM = 2, 1 << 18
_NAME = re.compile(r"\.?\d{8}\b")
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)  # pages about errors


def save(folder: Path, step: int, state: PyTree) -> None:
    """Save a state; all but the latest two are deleted.

    Next to the checkpoint is its seal, with the SHA-256 of each of its files and the shapes of its arrays. The seal is
    written last, so a sealed checkpoint is always complete, even if the process is killed. With several processes, only
    the first one saves, and the state must be whole on its devices, as a learner's state is.

    Args:
        folder: where the checkpoints are; created if missing.
        step: the state's step; if it is already saved, it is written again.
        state: the state.

    Raises:
        OSError: if it cannot be written to the disk; the message names the checkpoint, and earlier ones stay.
    """
    if not is_first():
        return
    path = folder.absolute() / f"{step:08d}"
    state = jax.tree.map(np.asarray, state)
    _seal(path).unlink(missing_ok=True)
    with naming(path):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as room:  # on a full disk, Orbax prints pages from its own threads
            room.write(bytes(_ROOM + sum(leaf.nbytes for leaf in jax.tree.leaves(state))))
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.StandardSave(state), force=True)
    except (OSError, ValueError) as error:  # a ValueError of TensorStore, with hundreds of characters
        raise OSError(f"cannot write {path}: {str(error).split(':')[0]}") from error
    write_atomically(_seal(path), (json.dumps(_contents(path, state), indent=2) + "\n").encode())
    kept = {seal.stem for seal in _seals(folder)[-_KEEP:]}
    for old in folder.iterdir():  # also removes what a killed save left
        if _NAME.match(old.name) and old.name.removesuffix(".json") not in kept:
            old.unlink() if old.is_file() else shutil.rmtree(old)


def restore(folder: Path, fresh: PyTree) -> PyTree:
    """The latest undamaged state; a damaged one is named in a warning, and the one before it is used.

    Args:
        folder: where the checkpoints are.
        fresh: a state of the same structure, shapes and dtypes, to return if there is none.

    Returns:
        The state, on each device of the mesh in context; with several processes, all get what the first one finds.
    """
    host = jax.tree.map(np.asarray, fresh)
    found = of_first(_latest(folder, host) if is_first() else host)
    return fresh if found is host else replicate(jax.tree.map(jnp.asarray, found))


def _latest(folder: Path, fresh: PyTree) -> PyTree:
    for seal in reversed(_seals(folder)):
        path = seal.absolute().with_suffix("")
        try:
            whole = read_json(seal) == _contents(path, fresh)  # Orbax reports damage in pages, or not at all
        except ValueError:
            whole = False
        if whole:
            with _checkpointer() as checkpointer:
                return checkpointer.restore(path, args=ocp.args.StandardRestore(fresh))
        logging.getLogger(__name__).warning(
            "%s is damaged, or from another run; learning goes back to the one before", path
        )
    return fresh


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer for this process only, even if there are others."""
    several = {"primary_host": 0, "active_processes": {0}, "barrier_sync_key_prefix": "first"}
    options = ocp.options.MultiprocessingOptions(**several if jax.process_count() > 1 else {})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def _seals(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


def _contents(path: Path, state: PyTree) -> dict[str, dict[str, str]]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        "files": {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "arrays": {jax.tree_util.keystr(where): f"{leaf.dtype} {leaf.shape}" for where, leaf in leaves},
    }
