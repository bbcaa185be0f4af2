"""Two processes on loopback, four devices each, learn and sample what one process does; the first one alone writes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import gaussian as gaussian_config
from experiments import given, workdir
from experiments.run import teacher_pairs
from ld3_jax import batches, learning, losses, pretrained, processes, recording
from ld3_jax.processes import of_first
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

STEPS, NUM, SIZE = 8, 20, 8


def learn(folder: Path) -> None:
    """What `experiments.train` does, without comparison and pictures."""
    config, ring = gaussian_config.get_config(), pretrained.load("ring")
    teacher = Teacher(Solver("ddim", 10), "uniform", batch_size=16, cache=folder / "teacher")
    with workdir.held(folder / "run", config):
        pairs = teacher_pairs("teacher", ring, teacher, jax.random.key(0), 16)
        student = learning.make_student(ring.model, ring.schedule, Solver("ddim", 3), Partial(losses.l2))
        learner = learning.GradientDescent(steps=STEPS, batch_size=16, valid_batch=16)
        task = learning.make_task(student, pairs, jax.random.key(1), learning.Gaps(), learner)
        workdir.claim(folder / "run", config)
        learned = learning.describe(task, recording.learn(folder / "run", task, "uniform").state)
        replace(learned, model=ring.identity()).save(folder / "run" / "schedule.json")


def sample(schedule: Path, folder: Path) -> None:
    workdir.fill(folder / "samples", *given.read([schedule]), num=NUM, size=SIZE, seed=1, format="npz")


def one_of_two(root: str) -> None:
    """What each process runs. Each has its own disk, so that the second one finds nothing there."""
    recording._SAVE_EVERY_S = -1.0
    processes.join()
    folder, schedule = Path(root) / str(jax.process_index()), Path(root) / "0" / "run" / "schedule.json"
    with jax.set_mesh(batches.all_devices()):
        learn(folder)
        of_first(np.zeros(()))  # what the first one writes is there when all have come here
        if jax.process_index() == 0:
            schedule.rename(Path(root) / "uninterrupted.json")
            (folder / "run" / "checkpoints" / f"{STEPS:08d}.json").unlink()
        learn(folder)  # continues from the second-to-last step, with the teacher's pairs from the cache
        of_first(np.zeros(()))
        sample(schedule, folder)
    print(json.dumps({"devices": jax.device_count()}))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of two processes, and what they printed."""
    root = tmp_path_factory.mktemp("together")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    code = f"import test_distributed; test_distributed.one_of_two({str(root)!r})"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=200) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(err[-3000:] for _, err in printed)
    return root, [out for out, _ in printed]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process with one device."""
    root = tmp_path_factory.mktemp("alone")
    learn(root)
    return root


def test_two_processes_learn_the_same_schedule_as_one(together, alone):
    root, _ = together
    one, two = (learning.load(folder / "run" / "schedule.json") for folder in (alone, root / "0"))
    for name in ("t", "t_c"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=0, atol=1e-5)
    assert np.abs(np.diff(one.t, 2)).max() > 0.01  # the times that learning starts from are uniform


def test_two_processes_go_on_with_the_same_bits_from_the_disk_of_the_first(together):
    root, _ = together
    assert (root / "0" / "run" / "schedule.json").read_bytes() == (root / "uninterrupted.json").read_bytes()


def test_two_processes_draw_the_same_samples_as_one(together, tmp_path):
    root, _ = together
    sample(root / "0" / "run" / "schedule.json", tmp_path)
    names = sorted(path.name for path in (root / "0" / "samples").glob("*.npz"))
    assert names == ["00000000.npz", "00000008.npz", "00000016.npz"]
    for name in names:
        one, two = (np.load(folder / "samples" / name)["samples"] for folder in (tmp_path, root / "0"))
        np.testing.assert_allclose(two, one, atol=1e-5)


def test_the_first_process_alone_writes_and_prints(together):
    root, (first, second) = together
    assert '{"devices": 8}' in first  # among Gloo's lines, which threads write across each other
    assert "devices" not in second
    assert not (root / "1").exists()


def test_the_environment_says_which_process_this_is(monkeypatch):
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **values: given.append(values))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    processes.join()
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ValueError, match=r"invalid literal for int.*'x'"):
        processes.join()
    assert given == [{"num_processes": 2, "process_id": 0}]


@pytest.mark.parametrize(("count", "seen"), [("1(x4)", {"all"}), ("1", {"all"}), ("8(x4)", set()), ("", set())])
def test_a_process_that_is_alone_on_its_node_takes_all_its_devices(count, seen, monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)
    monkeypatch.setattr(type(jax.config), "update", lambda self, name, value: given.update({name: value}))
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", count)
    processes.join()
    assert set(given.values()) == seen
