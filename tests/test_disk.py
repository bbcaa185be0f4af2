"""Files that are whole at any moment, names for arrays, numbers from JSON."""

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

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


def test_fingerprint_changes_with_leaves_and_structure_but_not_with_addresses():
    def made():
        def network(weights, x):
            return weights * x

        return network

    one, network = np.float32([1, 2]), made()
    assert disk.fingerprint(Partial(network, one)) == disk.fingerprint(Partial(made(), one))
    others = [Partial(network, 2 * one), Partial(np.sin, one), Partial(network, one, None)]
    assert len({disk.fingerprint(tree) for tree in [Partial(network, one), *others]}) == 4


def test_fingerprint_changes_with_what_a_closure_holds():
    def made(weight, inner=np.sin):
        return Partial(lambda x: weight * inner(x))

    def scaled(factor):
        return lambda x: factor * x

    assert disk.fingerprint(made(0.1)) == disk.fingerprint(made(0.1))
    different = [made(0.1), made(0.9), made(np.float32([0.1, 0.2])), made(0.1, scaled(2.0)), made(0.1, scaled(3.0))]
    assert len({disk.fingerprint(one) for one in different}) == len(different)


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
