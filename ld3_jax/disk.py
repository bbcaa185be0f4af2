"""What touches the disk everywhere: whole files, and names for arrays."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, even if the process is killed, it is whole: the old one or the new one.

    Args:
        path: the file; its folder is made if missing.
        content: all of it.

    Raises:
        OSError: if the disk does not take it; the message names the file, and an earlier file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """Nested lists of numbers, as JSON gives them, as an array. Where it is anything else, NaN, without an axis."""
    try:
        array = np.asarray(values, object)
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in array.flat):
            return array.astype(float)
    except (ValueError, OverflowError):  # ragged; an integer beyond the floats
        pass
    return np.full((), np.nan)


def digest(tree: PyTree) -> str:
    """SHA-256, as 16 hexadecimal digits, of a pytree's leaves: their paths, shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
