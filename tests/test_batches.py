"""Batches: equal ones that hold every sample, in order, spread over the devices of the mesh in context."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from ld3_jax import batches, grids, schedules, teacher
from ld3_jax.denoisers import to_noise
from ld3_jax.learning import (
    Discretization,
    Gaps,
    GaussNewton,
    GradientDescent,
    begin,
    distances,
    make_student,
    make_task,
    steps,
)
from ld3_jax.learning.task import move
from ld3_jax.networks import gaussian
from ld3_jax.schedules import RectifiedFlow
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher, make_pairs

SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
KEY = jax.random.key(3)
STUDENT = make_student(MODEL, SCHEDULE, Solver("ddim", 3))


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 25])
def test_equal_batches_hold_all_samples_and_are_as_few_as_they_can_be(batch_size, multiple):
    largest = max(batch_size - batch_size % multiple, multiple)
    with jax.sharding.use_abstract_mesh(AbstractMesh((multiple,), ("data",), axis_types=(AxisType.Auto,))):
        assert batches.device_count() == multiple
        for count in range(1, 60):
            n_batches, size = batches.equal_batches(count, batch_size)
            assert (n_batches - 1) * size < count <= n_batches * size
            assert size % multiple == 0
            assert size <= largest
            assert n_batches == -(-count // largest)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_in_batches_keeps_the_order_of_a_pytree(batch_size):
    tree = {"a": jnp.arange(7), "b": jnp.arange(42.0).reshape(7, 3, 2)}
    sizes = []

    def function(batch):
        sizes.append(len(batch["a"]))
        return jax.tree.map(lambda leaf: 2 * leaf, batch)

    doubled = batches.in_batches(function, tree, batch_size)
    chex.assert_trees_all_equal(doubled, jax.tree.map(lambda leaf: 2 * leaf, tree))
    assert max(sizes) <= batch_size


def test_without_a_mesh_nothing_moves():
    tree = {"a": np.arange(7), "b": jnp.arange(3.0)}
    for placed in (batches.replicate(tree), batches.divide(tree)):
        assert all(placed[name] is tree[name] for name in tree)
    assert batches.device_count() == 1


def test_a_mesh_whose_axes_the_compiler_may_not_use_is_refused():
    x_T = jax.random.normal(KEY, (4, 2))
    pairs, t = teacher.Pairs(x_T, x_T), grids.grid("edm", SCHEDULE, 3)
    uses = [
        lambda: make_pairs(MODEL, SCHEDULE, x_T),
        lambda: make_task(STUDENT, pairs, KEY, Gaps(), GradientDescent(batch_size=2)),
        lambda: distances(STUDENT, Discretization(t, t), pairs),
    ]
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))):
        for use in uses:
            with pytest.raises(ValueError, match=r"must be of type AxisType\.Auto, .* got .*Explicit"):
                use()


@pytest.fixture(scope="module")
def devices():
    """What `on_eight_devices` printed, in a process that has eight."""
    path = os.pathsep.join([str(Path(batches.__file__).parents[1]), str(Path(__file__).parent)])
    code = "import chex; chex.set_n_cpu_devices(8); import test_batches; test_batches.on_eight_devices()"
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def on_eight_devices():
    """Learn on one device and on eight, and print what differs."""
    integrate, spread_over = teacher._integrate, []

    def watched(*args):
        spread_over.append(len(args[4][0].sharding.device_set) if not args[4][0].is_fully_replicated else 1)
        return integrate(*args)

    teacher._integrate = watched
    learner = GradientDescent(steps=20, batch_size=8, held_out=10)
    alone = _learn(learner)
    with jax.set_mesh(batches.all_devices()):
        together = _learn(learner)
        task, state = together
        text = move.lower(task, state).compile().as_text()
    uneven = []
    for learner in (GradientDescent(steps=3, batch_size=6), GaussNewton(steps=3, batch_size=6)):
        with jax.set_mesh(batches.all_devices()):
            there = _learn(learner)
        uneven.append(_difference(_learn(learner)[1].params, there[1].params))
    report = {
        "devices": jax.device_count(),
        "pairs": _difference(alone[0].train, together[0].train),
        "schedule": _difference(alone[1].best, together[1].best),
        "moved": _difference(alone[1].best, begin(alone[0], "logsnr").best),
        "teacher": spread_over[:4],
        "all-reduce": text.count("all-reduce("),
        "uneven": uneven,
        "PyTorch": _of_pytorch(),
    }
    print(json.dumps(report))


def _of_pytorch():
    """What differs where a module samples for one device and for eight."""
    import torch_modules

    from ld3_jax.interop import pytorch_network

    module = torch_modules.build("plain")
    model = to_noise(pytorch_network(module, (4, 8, 8)), RectifiedFlow(), "flow")
    x_T = teacher.draw_noise(KEY, 16, (4, 8, 8))
    alone = make_pairs(model, RectifiedFlow(), x_T, teacher=Teacher(Solver("ddim", 3)))
    with jax.set_mesh(batches.all_devices()):
        return _difference(alone, make_pairs(model, RectifiedFlow(), x_T, teacher=Teacher(Solver("ddim", 3))))


def _learn(learner):
    x_T = teacher.draw_noise(KEY, 20, (2,))
    pairs = make_pairs(MODEL, SCHEDULE, x_T, teacher=Teacher(Solver("ddim", 20), batch_size=16))
    task = make_task(STUDENT, pairs, KEY, Gaps(), learner)
    *_, (state, _) = steps(task, begin(task, "logsnr"))
    return task, state


def _difference(one, another):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(another), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in leaves)


def test_eight_devices_learn_the_same_times(devices):
    assert devices["devices"] == 8
    assert devices["pairs"] < 1e-5
    assert devices["schedule"] < 1e-5
    assert devices["moved"] > 0.01


def test_a_pytorch_module_serves_all_devices(devices):
    assert devices["PyTorch"] < 1e-5


def test_batches_are_spread_over_the_devices(devices):
    assert devices["teacher"] == [1, 1, 8, 8]
    assert devices["all-reduce"] > 0


def test_a_batch_that_does_not_divide_among_the_devices_learns_the_same(devices):
    gradient_descent, gauss_newton = devices["uneven"]
    assert gradient_descent < 1e-6
    assert gauss_newton < 1e-3  # rounding, which a matrix of few samples amplifies


def test_samples_that_are_not_finite_are_counted_and_named():
    samples = {"a": jnp.ones((14, 2)).at[2:13, 1].set(jnp.inf), "b": jnp.ones(14).at[0].set(jnp.nan)}
    with pytest.raises(FloatingPointError, match=r"^they: 12 of 14 .* number 0, 2, 3, .*, 10, \.\.\.; do so$"):
        batches.check_finite(samples, "they", "; do so")
    batches.check_finite({"a": jnp.ones((3, 0)), "b": jnp.arange(3)}, "they")
