"""Files: written whole or not at all, of arrays, of JSON; and digests of arrays.

Of several processes (`ld3_jax.processes`) the first one alone writes.
"""

import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, PyTree

from ld3_jax.processes import is_first

# What NumPy raises for a damaged file, or one of another kind.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, AttributeError, TypeError, SyntaxError, MemoryError)
_DAMAGE += (zipfile.BadZipFile, zlib.error)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk names the file that is written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, even if the process is killed, it is whole: the old one or the new one.

    Args:
        path: the file; its folder is made if missing.
        content: all of it.

    Raises:
        OSError: if the disk does not take it; the message names the file, and an earlier file stays.
    """
    if not is_first():
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:  # it is there only if something went wrong
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before anything is computed whether a file can be written; its folder is made if missing.

    Raises:
        OSError: if not; the message names the file.
    """
    if not is_first():
        return
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name, atomically.

    Raises:
        OSError: if the disk does not take them.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Arrays of those names from what `write_arrays` wrote; each is verified, for zip holds a CRC of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or lacks an array.
    """
    with path.open("rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                return [file[name] for name in names]
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of integers with thousands of digits
        raise ValueError(f"{path}: not valid JSON, perhaps cut short ({error})") from error


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """An array of nested lists of numbers, as JSON gives them; a scalar NaN for anything else."""
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


def fingerprint(tree: PyTree) -> str:
    """16 hexadecimal digits of a pytree's leaves and of its structure: names of functions, static choices, shapes.

    It is the same in every process. Functions with one name differ by their leaves and by what their closures hold.
    """
    structure = jax.tree.structure(tree)
    names = re.sub(r" at 0x[0-9a-f]+", "", str(structure))
    held = "".join(fingerprint(_held(function)) for function in _functions(structure) if function.__closure__)
    return hashlib.sha256(f"{names} {digest(tree)}{held}".encode()).hexdigest()[:16]


def _functions(structure: jax.tree_util.PyTreeDef) -> list[FunctionType]:
    """The functions that are static parts of a pytree."""
    _, static = structure.node_data() or (None, None)
    own = [getattr(one, "fun", one) for one in (static if isinstance(static, tuple) else (static,))]
    of_children = [function for child in structure.children() for function in _functions(child)]
    return [one for one in own if isinstance(one, FunctionType)] + of_children


def _held(function: FunctionType) -> list[Any]:
    """What a function's closure holds, functions in it as pytrees."""
    values = [cell.cell_contents for cell in function.__closure__]
    return [Partial(one) if isinstance(one, FunctionType) else one for one in values if one is not function]
