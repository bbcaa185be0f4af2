"""Teacher pairs: reproducible, cached under all that determines them, resumed, and made again where damaged."""

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import denoisers, grids, schedules, solvers, teacher, teacher_cache
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

SCHEDULE = schedules.VPLinear()
SOLVER = Solver("ddim", 4)


def _network(weights, x, t, cond=None):
    return weights * jnp.tanh(x) / (1 + t) + (0 if cond is None else 0.1 * cond["class"][:, None])


def _another_network(weights, x, t, cond=None):
    return weights * x


MODEL = Partial(_network, jnp.float32(0.7))
NOISE = teacher.draw_noise(jax.random.key(0), 7, (2,))
CLASSES = {"class": jnp.arange(7) % 4}
OTHER_CLASSES = {"class": jnp.arange(7) % 3}


@jax.jit
def solve(schedule, t, x_T, cond=None):
    return solvers.sample(MODEL, schedule, x_T, t, solver="ddim", cond=cond)


def make(cache=None, on_batch=lambda done, total: None, **changes):
    """Seven pairs in three batches."""
    inputs = {"model": MODEL, "schedule": SCHEDULE, "x_T": NOISE, "cond": None}
    kind = {"solver": SOLVER, "batch_size": 3}
    inputs |= {name: value for name, value in changes.items() if name in inputs}
    kind |= {name: value for name, value in changes.items() if name not in inputs}
    return teacher.make_pairs(**inputs, teacher=Teacher(**kind, cache=cache), on_batch=on_batch)


def batch_files(cache):
    return sorted(cache.glob("*/batch_*.npz"))


@pytest.fixture
def calls(monkeypatch):
    """Inputs of each batch that was really integrated."""
    seen, integrate = [], teacher._integrate

    def counted(*args):
        seen.append(args[4])
        return integrate(*args)

    monkeypatch.setattr(teacher, "_integrate", counted)
    return seen


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("count", [1, 3, 20])
def test_noise_of_a_sample_does_not_depend_on_the_count(count):
    others = teacher.draw_noise(jax.random.key(0), count, (2,))
    shared = min(count, 7)
    np.testing.assert_array_equal(NOISE[:shared], others[:shared])
    assert len(np.unique(others)) == others.size == 2 * count


@pytest.mark.parametrize("batch_size", [1, 50])
def test_a_pair_does_not_depend_on_the_batch_size(batch_size):
    pairs, others = make(), make(batch_size=batch_size)
    chex.assert_trees_all_equal(others.x_T, pairs.x_T, NOISE)
    chex.assert_trees_all_close(others.x_0, pairs.x_0, rtol=1e-5)


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.VELinear()], ids=lambda schedule: type(schedule).__name__)
def test_pairs_are_what_the_solver_makes_of_the_noise_on_the_grid(schedule):
    x_T = schedule.prior_scale * teacher.draw_noise(jax.random.key(0), 20, (2,))
    pairs = make(schedule=schedule, grid="edm", x_T=x_T, batch_size=200)
    chex.assert_trees_all_equal(pairs.x_T, x_T)
    np.testing.assert_allclose(pairs.x_0, solve(schedule, grids.grid("edm", schedule, 4), x_T), rtol=1e-5)


def test_noise_is_standard_normal():
    noise = teacher.draw_noise(jax.random.key(0), 200, (20,))
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.05)


def test_states_may_be_pytrees():
    def network(x, t, cond):
        return jax.tree.map(jnp.tanh, x)

    x_T = {"a": NOISE, "b": NOISE[:, 0]}
    pairs = make(model=network, x_T=x_T)
    chex.assert_trees_all_equal_shapes(pairs.x_0, pairs.x_T, x_T)
    alone = make(model=Partial(lambda x, t, cond: jnp.tanh(x)))
    chex.assert_trees_all_close(pairs.x_0["a"], alone.x_0, rtol=1e-5)


def test_what_is_cached_is_read_and_not_made_again(cache, calls):
    first = make(cache)
    assert len(calls) == len(batch_files(cache)) == 3
    chex.assert_trees_all_equal(make(cache), first, strict=True)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Partial(_network, jnp.float32(0.7001))},
        {"model": Partial(_another_network, *MODEL.args)},
        {"model": denoisers.to_noise(MODEL, SCHEDULE, "v")},
        {"schedule": schedules.VPLinear(beta_1=19.0)},
        {"solver": Solver("dpmpp", 4, order=2)},
        {"grid": "edm"},
        {"x_T": teacher.draw_noise(jax.random.key(1), 7, (2,))},
        {"x_T": NOISE[:6]},
        {"x_T": teacher.draw_noise(jax.random.key(0), 7, (3,))},
        {"batch_size": 7},
        {"cond": CLASSES},
        {"identity": "another"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_pairs_of_another_kind_lie_elsewhere(changes, cache, calls):
    first = make(cache)
    before = len(calls)
    other = make(cache, **changes)
    assert len(calls) > before
    assert len(list(cache.iterdir())) == 2
    chex.assert_trees_all_equal(make(cache), first, strict=True)
    chex.assert_trees_all_equal(make(cache, **changes), other, strict=True)


class _Scaled:
    by = 0.5

    def __call__(self, x, t, cond=None):
        return self.by * x


def test_a_model_that_is_changed_in_place_has_pairs_of_its_own(cache, calls):
    model, found = _Scaled(), []
    for model.by in (0.5, 0.7, 0.5):
        found.append(make(cache, model=model.__call__))
        chex.assert_trees_all_close(found[-1], make(model=Partial(lambda x, t, cond, by=model.by: by * x)), rtol=1e-5)
    assert len(batch_files(cache)) == 6
    chex.assert_trees_all_equal(found[2], found[0], strict=True)


def _host(x, t, cond=None):
    return jax.pure_callback(lambda x: 0.5 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_a_model_whose_code_is_not_seen_is_cached_under_a_name_alone(cache, calls, caplog):
    make(cache, model=_host)
    assert (
        "does not tell the model from others: it uses pure_callback, for which Teacher(identity=...) may stand"
        in caplog.text
    )
    assert not batch_files(cache)
    for _ in range(2):
        make(cache, model=_host, identity="a half")
    assert len(calls) == 6
    assert len(caplog.records) == 1


def test_a_model_that_changes_from_trace_to_trace_is_not_cached(cache, caplog):
    numbers = itertools.count()
    make(cache, model=Partial(lambda x, t, cond=None: next(numbers) * 1e-3 * x))
    assert "each time that it is traced, it computes something else" in caplog.text
    assert not list(cache.glob("*"))


def test_threads_on_one_cold_cache_all_get_the_pairs(cache):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: make(cache), range(4)))
    chex.assert_trees_all_equal(*found, make(), strict=True)
    assert len(batch_files(cache)) == 3


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
    chex.assert_trees_all_equal(resumed, make(), strict=True)


def _truncate(content):
    return content[: len(content) // 2]


def _flip(content):
    middle = content.index(b"arr_0.npy") + 140  # among the numbers of x_0
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda content: b"", lambda content: b"nonsense"])
def test_a_damaged_file_is_named_and_made_again(damage, cache, calls, caplog):
    first = make(cache)
    untouched, damaged, also_untouched = batch_files(cache)
    ages = [path.stat().st_mtime_ns for path in (untouched, also_untouched)]
    content = damaged.read_bytes()
    damaged.write_bytes(damage(content))
    chex.assert_trees_all_equal(make(cache), first, strict=True)
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]
    assert len(calls) == 4
    assert damaged.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in (untouched, also_untouched)] == ages


@pytest.mark.parametrize(
    "arrays",
    [[np.zeros((3, 5), np.float32)], [np.zeros((3, 2), np.float64)], [], [np.array([{}, {}, {}])]],
    ids=["shape", "dtype", "too few", "pickled"],
)
def test_a_file_of_other_arrays_is_named_and_made_again(arrays, cache, calls, caplog):
    first = make(cache)
    damaged = batch_files(cache)[1]
    np.savez(damaged, *arrays)
    chex.assert_trees_all_equal(make(cache), first, strict=True)
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]
    assert len(calls) == 4


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_no_single_wrong_byte_stops_a_run_or_changes_a_sample(mask, tmp_path, caplog):
    batch = {"position": jnp.asarray([[1.5, -2.0]]), "angle": jnp.asarray([[0.25, 3.0]])}
    path = tmp_path / "batch_00000.npz"
    teacher_cache.write(path, batch)
    content, found = path.read_bytes(), 0
    caplog.set_level("ERROR")
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :])
        read = teacher_cache.read(path, batch)
        if read is None:
            found += 1
        else:
            chex.assert_trees_all_equal(read, batch, strict=True)
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
    chex.assert_trees_all_equal(make(cache), make(), strict=True)
    assert len(calls) == 2 + 2 + 3


@pytest.mark.parametrize("changes", [{"x_T": NOISE[:0]}, {"batch_size": 0}], ids=["sample", "batch"])
def test_nothing_to_make_is_refused(changes):
    with pytest.raises(ValueError, match=r"at least 1.*, got .*\b0\b"):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": Solver("ddim")}, "number of network calls, nfe, got"),
        ({"grid": "magic"}, "grid must be one of"),
        ({"cond": {"class": jnp.arange(6)}}, r"leading axis, got \('float32\[7, 2\]', {'class': 'int32\[6\]'}"),
        ({"cond": 3.0}, r"share their leading axis, got \('float32\[7, 2\]', 3.0"),
    ],
    ids=["solver", "grid", "count", "scalar"],
)
def test_what_makes_no_pairs_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_conditions_reach_the_model_and_the_cache(cache, calls):
    pairs = make(cache, cond=CLASSES)
    grid = grids.grid("logsnr", SCHEDULE, 4)
    np.testing.assert_allclose(pairs.x_0, solve(SCHEDULE, grid, NOISE, CLASSES), rtol=1e-5)
    chex.assert_trees_all_equal(pairs.cond, CLASSES)
    assert np.abs(pairs.x_0 - make(cache, cond=OTHER_CLASSES).x_0).max() > 1e-3
    before = len(calls)
    chex.assert_trees_all_equal(make(cache, cond=CLASSES), pairs, strict=True)
    assert len(calls) == before == 6


def test_conditions_do_not_change_the_noise():
    chex.assert_trees_all_equal(make(cond=CLASSES).x_T, make().x_T)


def _broken(x, t, cond=None):
    """Some samples are so far out that the network has no answer."""
    return jnp.where(jnp.abs(x).max(-1, keepdims=True) > 1.5, jnp.nan, x)


def test_samples_that_are_not_finite_are_refused_or_left_out(cache):
    broken, kept = {"model": Partial(_broken), "cache": cache}, np.abs(NOISE).max(-1) <= 1.5
    bad = np.flatnonzero(~kept)
    assert 0 < len(bad) < 7
    with pytest.raises(FloatingPointError, match=f"the teacher's samples: {len(bad)} of 7 .* number {bad[0]}"):
        make(**broken)
    assert len(batch_files(cache)) == 3  # nothing is lost
    pairs = make(**broken, drop_not_finite=True, cond=CLASSES)
    chex.assert_trees_all_equal((pairs.x_T, pairs.cond), (NOISE[kept], {"class": CLASSES["class"][kept]}))
    assert np.isfinite(pairs.x_0).all()
    with pytest.raises(FloatingPointError, match="7 of 7 are"):
        make(model=Partial(lambda x, t, cond=None: x * jnp.nan), drop_not_finite=True)


def test_noise_of_half_precision_makes_pairs_of_single_precision(cache):
    half = NOISE.astype(jnp.bfloat16)
    pairs = make(cache, x_T=half)
    chex.assert_trees_all_equal(pairs, make(cache, x_T=half.astype(jnp.float32)), strict=True)
    assert len(batch_files(cache)) == 3
