"""Samples in a folder: each fixed by its number, in files that are never made twice and belong to one run only."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import workdir
from ld3_jax import learning, pretrained
from ld3_jax.learning import Learned
from ld3_jax.pretrained import drawn
from ld3_jax.solvers import Solver

RING, DDIM = pretrained.load("ring"), Solver("ddim", 3)
NUM, SIZE = 20, 8
NPZ = ["00000000.npz", "00000008.npz", "00000016.npz"]


@pytest.fixture(scope="module")
def learned():
    found = learning.on_grid("uniform", RING.schedule, DDIM)
    return Learned(DDIM, found, np.asarray(found.lam(RING.schedule)), model=RING.identity())


def fill(folder, learned, **changes):
    arguments = {"num": NUM, "size": SIZE, "seed": 1, "format": "npz"}
    workdir.fill(folder, learned, RING, **arguments | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def samples(folder):
    return np.concatenate([np.load(path)["samples"] for path in sorted(folder.glob("*.npz"))])


def test_a_sample_is_fixed_by_its_number(learned, tmp_path):
    fill(tmp_path / "a", learned)
    fill(tmp_path / "b", learned, size=5)
    fill(tmp_path / "c", learned, num=7)
    at_once = learned.sample(RING.model, RING.schedule, *RING.draw(jax.random.key(1), NUM))
    assert sorted(contents(tmp_path / "a")) == [*NPZ, "config.json"]
    a, b, c = (samples(tmp_path / name) for name in "abc")
    np.testing.assert_allclose(a, at_once, atol=1e-6)
    np.testing.assert_allclose(b, a, atol=1e-6)
    np.testing.assert_allclose(c, a[:7], atol=1e-6)
    assert len(np.unique(a, axis=0)) == NUM


def test_a_killed_run_goes_on_and_the_bytes_are_the_same(learned, tmp_path, monkeypatch):
    fill(tmp_path / "whole", learned)
    write, run, batches = workdir.write_atomically, drawn.run_in_batches, []

    def killed(path, content):
        if path.name == NPZ[1]:
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[:10])
            raise KeyboardInterrupt
        write(path, content)

    def watched(*arguments, **settings):
        batches.append(1)
        return run(*arguments, **settings)

    monkeypatch.setattr(workdir, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "run", learned)
    assert NPZ[0] in contents(tmp_path / "run")
    monkeypatch.setattr(workdir, "write_atomically", write)
    monkeypatch.setattr(drawn, "run_in_batches", watched)
    fill(tmp_path / "run", learned)
    assert len(batches) == 2
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    fill(tmp_path / "run", learned)
    assert len(batches) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed: 1, here 2"),
        ({"num": 21}, "num: 20, here 21"),
        ({"size": 4}, "batch_size: 8, here 4"),
        ({"format": "png"}, "format: 'npz', here 'png'"),
    ],
)
def test_the_folder_of_another_run_is_refused(change, message, learned, tmp_path):
    fill(tmp_path, learned)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds another configuration: {message}. Take another folder"):
        fill(tmp_path, learned, **change)
    assert contents(tmp_path) == before


def test_files_of_others_stay(learned, tmp_path):
    fill(tmp_path / "ours", learned)
    ours, theirs = (tmp_path / "ours" / name for name in (f".{NPZ[0]}.0a1b2c3d.tmp", ".notes.0a1b2c3d.tmp"))
    for path in (ours, theirs):
        path.write_bytes(b"1")
    fill(tmp_path / "ours", learned)
    assert (ours.exists(), theirs.exists()) == (False, True)
    with pytest.raises(ValueError, match=r"holds files of others: \['ours'\]. Take another folder"):
        fill(tmp_path, learned)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_samples_of_another_schedule_are_refused(learned, tmp_path):
    fill(tmp_path, learned)
    other = learned.discretization._replace(t_c=learned.discretization.t_c * 1.01)
    with pytest.raises(ValueError, match="holds another configuration: learned: '"):
        fill(tmp_path, replace(learned, discretization=other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "bh2"}, "solver.variant: 'bh1', here 'bh2'"),
        ({"lower_order_final": False}, "solver.lower_order_final: True, here False"),
        ({"last_sigma": 0.0}, "solver.last_sigma: None, here 0.0"),
    ],
)
def test_samples_of_another_solver_are_refused(change, message, learned, tmp_path):
    first = replace(learned, solver=Solver("unipc", 3))
    with workdir.held(tmp_path, workdir._record(first, num=NUM)):
        workdir.claim(tmp_path, workdir._record(first, num=NUM))
    other = replace(first, solver=replace(first.solver, **change))
    with (
        pytest.raises(ValueError, match=f"holds another configuration: {message}. Take another folder"),
        workdir.held(tmp_path, workdir._record(other, num=NUM)),
    ):
        pass


def test_samples_that_are_not_finite_are_named(learned, tmp_path):
    broken = replace(RING, model=jax.tree_util.Partial(lambda inner, x, t, cond=None: inner(x, t) / 0, RING.model))
    batches = drawn.batches(learned, broken, [8, 16], num=NUM, size=SIZE, seed=1)
    with pytest.raises(FloatingPointError, match="a batch of samples: 8 of 8 are not finite, namely number 8, 9, 10, "):
        next(batches)


def test_a_picture_depends_on_its_sample_alone():
    stretched = replace(RING, display=lambda images, like: images / like.max())
    images = np.random.default_rng(0).uniform(0, 1, (3, 4, 4, 3)).astype(np.float32)
    files = drawn.contents(stretched, images, "png")
    assert files[1:] == drawn.contents(stretched, images[1:], "png")
    assert len(set(files)) == 3
    assert workdir._names(8, 3, "png") == ["00000008.png", "00000009.png", "00000010.png"]
    assert (drawn.formats(stretched), drawn.formats(RING)) == (["npz", "png"], ["npz"])
