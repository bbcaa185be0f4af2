"""Files: written whole or not at all, of arrays, of JSON; and digests of arrays.

With several processes (`ld3_jax.processes`), only the first one writes.
"""

import hashlib
import io
import json
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ld3_jax.processes import is_first

_HOME = os.path.expanduser("~")
CACHE = None if _HOME == "~" else Path(_HOME, ".cache", "ld3_jax")  # None: the user's home is unknown
# What NumPy raises for a damaged file, or for a file of another kind.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, AttributeError, TypeError, SyntaxError, MemoryError)
_DAMAGE += (OverflowError, zipfile.BadZipFile, zlib.error)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's; Python's zipfile expands the others all at once
_SMALL, _EXPANSION = 2**26, 100  # bytes that any array may take, and how many times the file's size a larger one


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A disk error names the file that is being written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file next to a file, which it replaces once everything is written; if anything fails, it is removed.

    It is called `.NAME.XXXXXXXX.tmp`, with 8 random digits, so that processes and threads do not share one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(None, "it is neither a file nor a folder")  # a device or a pipe, which must not be replaced
        temporary.open("xb").close()  # never an existing one; unlike mkstemp's, it has the user's usual mode
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: even if the process is killed, the file is either the old one or the new one.

    Args:
        path: the file; its folder is created if missing.
        content: all of it.

    Raises:
        OSError: if it cannot be written to the disk; the message names the file, and an earlier file stays.
    """
    if not is_first():
        return
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check_writable(path: Path) -> None:
    """Check before anything is computed that a file can be written; its folder is created if missing.

    Raises:
        OSError: if it cannot; the message names the file.
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
        OSError: if they cannot be written to the disk.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Arrays with these names from what `write_arrays` wrote; each is verified by its CRC in the zip.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, lacks an array, or would expand to a hundred times its size.
    """
    with path.open("rb") as raw:
        most = max(_SMALL, _EXPANSION * os.fstat(raw.fileno()).st_size)
        try:
            with zipfile.ZipFile(raw) as file:
                for one in (entries := [file.getinfo(f"{name}.npy") for name in names]):
                    if one.file_size > most or one.compress_type not in _COMPRESSIONS:
                        raise ValueError(f"{one.filename} of {one.file_size:,} bytes; write it by numpy.savez")
                return [np.lib.format.read_array(file.open(one), allow_pickle=False) for one in entries]
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of integers with thousands of digits
        raise ValueError(f"{path}: not valid JSON, perhaps cut short ({error})") from error


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """An array from nested lists of numbers, as JSON gives them; a scalar NaN for anything else."""
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
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
