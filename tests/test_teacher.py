"""Teacher pairs: reproducible, cached under all that determines them, resumed, and made again where damaged."""

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import schedules, solvers, teacher, timesteps

SCHEDULE = schedules.vp_linear()
METHOD = solvers.Method("ddim", 4)
GRID = timesteps.grid("logsnr", SCHEDULE, 4)


def _network(weights, x, t, cond=None):
    return weights * jnp.tanh(x) / (1 + t) + (0 if cond is None else 0.1 * cond["class"][:, None])


MODEL = Partial(_network, jnp.float32(0.7))


def draw_condition(key, n):
    return {"class": jax.random.randint(key, (n,), 0, 10)}


@jax.jit
def solve(schedule, t, x_T, cond=None):
    return solvers.sample(MODEL, schedule, x_T, t, solver="ddim", cond=cond)


def make(cache=None, **changes):
    """Seven pairs in three batches."""
    arguments = {"model": MODEL, "schedule": SCHEDULE, "method": METHOD, "t": GRID, "key": jax.random.key(0)}
    arguments |= {"count": 7, "shape": (2,), "batch_size": 3}
    return teacher.make_pairs(**(arguments | changes), cache=cache)


def assert_identical(pairs, others):
    assert jax.tree.structure(pairs) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, pairs, others)


def batch_files(cache):
    return sorted(cache.glob("*/batch_*.npz"))


@pytest.fixture
def calls(monkeypatch):
    """Start states of each batch that was really integrated."""
    seen, integrate = [], teacher._integrate

    def counted(*args):
        seen.append(args[4])
        return integrate(*args)

    monkeypatch.setattr(teacher, "_integrate", counted)
    return seen


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 50}, {"count": 3}, {"count": 20}])
def test_noise_of_a_sample_depends_on_neither_batch_size_nor_count(changes):
    some, others = make().x_T, make(**changes).x_T
    shared = min(len(some), len(others))
    np.testing.assert_array_equal(some[:shared], others[:shared])
    assert len(np.unique(others)) == others.size == 2 * changes.get("count", 7)


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.ve_edm()], ids=lambda schedule: schedule.family)
def test_pairs_are_what_the_solver_makes_of_scaled_noise(schedule):
    t = timesteps.grid("edm", schedule, 4)
    pairs = make(schedule=schedule, t=t, count=200, batch_size=200)
    np.testing.assert_allclose(pairs.x_T.std(), schedule.prior_scale, rtol=0.1)
    np.testing.assert_allclose(pairs.x_0, solve(schedule, t, pairs.x_T), rtol=1e-5)


def test_what_is_cached_is_read_and_not_made_again(cache, calls):
    first = make(cache)
    assert len(calls) == len(batch_files(cache)) == 3
    assert_identical(make(cache), first)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Partial(_network, jnp.float32(0.7001))},
        {"schedule": schedules.vp_linear(beta_1=19.0)},
        {"method": solvers.Method("dpmpp", 4, order=2)},
        {"t": timesteps.grid("edm", SCHEDULE, 4)},
        {"key": jax.random.key(1)},
        {"count": 6},
        {"shape": (3,)},
        {"batch_size": 7},
        {"draw_condition": draw_condition},
        {"identity": {"name": "another"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_pairs_of_another_kind_lie_elsewhere(changes, cache, calls):
    first = make(cache)
    before = len(calls)
    other = make(cache, **changes)
    assert len(calls) > before
    assert len(list(cache.iterdir())) == 2
    assert_identical(make(cache), first)
    assert_identical(make(cache, **changes), other)


def test_a_stopped_run_goes_on_where_it_stopped(cache, calls):
    def stop(done, total):
        assert total == 3
        if done == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        make(cache, on_batch=stop)
    assert len(calls) == len(batch_files(cache)) == 2
    resumed = make(cache)
    assert len(calls) == 3
    assert_identical(resumed, make())


def _truncate(content):
    return content[: len(content) // 2]


def _flip(content):
    middle = content.index(b"arr_1.npy") + 140  # among the numbers of x_0
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda content: b"", lambda content: b"nonsense"])
def test_a_damaged_file_is_named_and_made_again(damage, cache, calls, caplog):
    first = make(cache)
    untouched, damaged, also_untouched = batch_files(cache)
    ages = [path.stat().st_mtime_ns for path in (untouched, also_untouched)]
    content = damaged.read_bytes()
    damaged.write_bytes(damage(content))
    assert_identical(make(cache), first)
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]
    assert len(calls) == 4
    assert damaged.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in (untouched, also_untouched)] == ages


@pytest.mark.parametrize(
    "arrays",
    [
        [np.zeros((3, 2), np.float32), np.zeros((3, 5), np.float32)],
        [np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float64)],
        [np.zeros((3, 2), np.float32)],
        [np.zeros((3, 2), np.float32), np.array([{}, {}, {}])],
    ],
    ids=["shape", "dtype", "too few", "pickled"],
)
def test_a_file_of_other_arrays_is_named_and_made_again(arrays, cache, calls, caplog):
    first = make(cache)
    damaged = batch_files(cache)[1]
    np.savez(damaged, *arrays)
    assert_identical(make(cache), first)
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]
    assert len(calls) == 4


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_no_single_wrong_byte_stops_a_run_or_changes_a_pair(mask, tmp_path, caplog):
    batch = teacher.Pairs(jnp.asarray([[1.5, -2.0]]), jnp.asarray([[0.25, 3.0]]))
    path = tmp_path / "batch_00000.npz"
    teacher._write(path, batch)
    content, found = path.read_bytes(), 0
    caplog.set_level("ERROR")
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :])
        read = teacher._read(path, batch)
        if read is None:
            found += 1
        else:
            assert_identical(read, batch)
    assert found > len(content) // 2


@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_full_disk_is_named_and_costs_no_earlier_batch(owner, function, cache, calls, monkeypatch):
    original, made = getattr(owner, function), []

    def full(*args):
        made.append(args)
        if len(made) == 3:  # what.json, the first batch, the second
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, full)
        with pytest.raises(OSError, match=r"batch_00001\.npz.*No space left") as caught:
            make(cache)
    assert caught.value.errno == errno.ENOSPC
    (directory,) = cache.iterdir()
    assert sorted(path.name for path in directory.iterdir()) == ["batch_00000.npz", "what.json"]
    assert_identical(make(cache), make())
    assert len(calls) == 2 + 2 + 3


@pytest.mark.parametrize("changes", [{"count": 0}, {"batch_size": 0}])
def test_nothing_to_make_is_refused(changes):
    with pytest.raises(ValueError, match=r"at least 1, got .*\b0\b"):
        make(**changes)


def test_conditions_are_drawn_and_cached_with_the_pairs(cache, calls):
    pairs = make(cache, draw_condition=draw_condition)
    np.testing.assert_allclose(pairs.x_0, solve(SCHEDULE, GRID, pairs.x_T, pairs.cond), rtol=1e-5)
    assert pairs.cond["class"].shape == (7,)
    assert len(np.unique(pairs.cond["class"])) > 2
    assert_identical(make(cache, draw_condition=draw_condition), pairs)
    assert len(calls) == 3


def test_conditions_do_not_change_the_noise():
    np.testing.assert_array_equal(make(draw_condition=draw_condition).x_T, make().x_T)


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
    assert teacher.digest(weights) == teacher.digest(jax.tree.map(jnp.array, weights))
    assert teacher.digest(weights) != teacher.digest(other)


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 25])
def test_equal_batches_hold_all_samples_and_are_as_few_as_they_can_be(batch_size, multiple):
    largest = max(batch_size - batch_size % multiple, multiple)
    for count in range(1, 60):
        n_batches, size = teacher.equal_batches(count, batch_size, multiple)
        assert (n_batches - 1) * size < count <= n_batches * size
        assert size % multiple == 0
        assert size <= largest
        assert n_batches == -(-count // largest)
