"""The state of learning in Orbax checkpoints, which a killed run goes on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree


@contextmanager
def manager(directory: Path, keep: int = 2) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of the checkpoints in a directory; it keeps the latest few and closes, saving all, at the end.

    A process killed while saving leaves the earlier checkpoint whole.

    Args:
        directory: where the checkpoints lie; made if missing.
        keep: how many to keep.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as checkpoints:
        yield checkpoints


def save(checkpoints: ocp.CheckpointManager, step: int, state: PyTree, *, wait: bool = False) -> None:
    """Start saving a state; the program goes on meanwhile.

    Args:
        checkpoints: the manager.
        step: the state's step; if it is saved already, nothing happens.
        state: the state.
        wait: wait for an earlier save that is still under way; without, this state is passed over.

    Raises:
        OSError: if the disk has not taken an earlier state; the checkpoints before it are whole.
    """
    if step == checkpoints.latest_step() or not (wait or not checkpoints.is_saving_in_progress()):
        return
    try:
        checkpoints.save(step, args=ocp.args.StandardSave(state))
    except ValueError as error:  # of TensorStore, with hundreds of characters
        raise OSError(f"checkpoint not written ({str(error).split(':')[0]})") from error


def restore(checkpoints: ocp.CheckpointManager, fresh: PyTree) -> PyTree:
    """The latest state.

    Args:
        checkpoints: the manager.
        fresh: a state of the same structure, shapes and dtypes, to return if there is no checkpoint.

    Raises:
        ValueError: if the checkpoint has another structure.
    """
    step = checkpoints.latest_step()
    if step is None:
        return fresh
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
    state = checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
    if jax.tree.structure(state) != jax.tree.structure(fresh):
        raise ValueError(f"checkpoint {checkpoints.directory / str(step)} holds a state of another structure")
    return state
