"""Files that are whole at any moment, names for arrays, numbers from JSON."""

import errno
import io
import os
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import disk


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "schedule.json"


@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(owner, function, path, monkeypatch):
    disk.write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, function, full)
    with pytest.raises(OSError, match=r"cannot write .*schedule\.json: No space left") as caught:
        disk.write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_a_write_over_a_file_replaces_it(path):
    for content in (b"long content", b"short"):
        disk.write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_threads_and_processes_of_one_number_write_at_once(path, monkeypatch):
    contents = [bytes([i]) * 100_000 for i in range(16)]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda content: disk.write_atomically(path, content), contents * 4))
    assert path.read_bytes() in contents
    assert os.listdir(path.parent) == [path.name]


def test_a_file_has_the_users_usual_mode(path):
    disk.write_atomically(path, b"new")
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*picture\.png"):
        disk.write_atomically(tmp_path / "file" / "deep" / "picture.png", b"new")


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.float32([1, 2, 3, 4.0000005]), "b": np.float32([0])},
        {"w": np.float32([[1, 2], [3, 4]]), "b": np.float32([0])},
        {"w": np.float32([1, 2, 3, 4]).view(np.int32), "b": np.float32([0])},
        {"v": np.float32([1, 2, 3, 4]), "b": np.float32([0])},
        {"w": np.float32([1, 2, 3, 4]), "b": np.float32([0]), "c": np.float32([])},
    ],
    ids=["byte", "shape", "dtype", "name", "leaf"],
)
def test_digest_changes_with_a_leafs(other):
    weights = {"w": np.float32([1, 2, 3, 4]), "b": np.float32([0])}
    assert disk.digest(weights) == disk.digest(jax.tree.map(jnp.array, weights))
    assert disk.digest(weights) != disk.digest(other)


@pytest.mark.parametrize("size", [2**30, 1], ids=["large", "lying"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_what_expands_beyond_all_bounds_is_refused_before_it_does(size, compression, tmp_path):
    path, content = tmp_path / "x.npz", io.BytesIO()
    np.save(content, np.zeros(2**21))
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", content.getvalue())
    real, claimed = (struct.pack("<L", number) for number in (len(content.getvalue()), size))
    path.write_bytes(path.read_bytes().replace(real, claimed))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        disk.read_arrays(path, ["x"])
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def _header(*shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("entry", [b"", b"no array", _header(10**30), _header(10**14), _header(-1), _header(3) + b"12"])
def test_an_entry_that_is_no_whole_array_is_damaged(entry, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", entry)
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        disk.read_arrays(tmp_path / "x.npz", ["x"])


def test_what_is_compressed_as_numpy_does_is_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(2**22))
    (found,) = disk.read_arrays(tmp_path / "x.npz", ["x"])
    assert found.shape == (2**22,)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "9" * 10**5, ""])
def test_what_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        disk.read_json(tmp_path / "x.json")


def test_numbers_are_read_as_they_are():
    for values in (1, 2.5, [], [1, 2.5], [[1.0, 2.0], [3.0, 4.0]], [float("inf"), 1.0]):
        np.testing.assert_array_equal(disk.numbers(values), np.asarray(values, float), strict=True)


@pytest.mark.parametrize("values", ["1", None, True, {}, {"a": 1.0}, [1.0, "2"], [[1.0], [2.0, 3.0]], [True], 10**400])
def test_what_is_no_number_is_nan(values):
    assert np.isnan(disk.numbers(values))
    assert disk.numbers(values).shape == ()


def test_what_cannot_be_written_is_found_out_before(tmp_path):
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "file" / "x.png", "File exists"), (tmp_path, "it is a folder")):
        with pytest.raises(OSError, match=f"cannot write {path}: {message}"):
            disk.check_writable(path)
    disk.check_writable(tmp_path / "new" / "x.png")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: it is neither a file nor a folder"):
        disk.write_atomically(tmp_path / "pipe", b"")
    assert [path.name for path in tmp_path.iterdir() if path.is_fifo()] == ["pipe"]
