"""The benchmark as a user meets it."""

import json
import subprocess
import sys

import pytest
from mains import main

from configs import gaussian
from experiments import ablation, tables
from experiments.run import Run

# The program with a table whose rows say when they were measured; the second is interrupted the first time.
PROGRAM = """
import time
from pathlib import Path
from experiments import benchmark, command

def interrupted():
    if not Path({marker!r}).exists():
        Path({marker!r}).touch()
        raise KeyboardInterrupt
    return {{"at": time.time(), "error": [0.5, 0.25, 0.125]}}

benchmark.TABLES["clock"] = table = lambda quick: [("one", lambda: {{"at": time.time()}}), ("two", interrupted)]
table.__doc__ = "When\\n    and where."
command.run(benchmark.main)
"""


def test_rows_are_saved_one_by_one_and_not_measured_again(tmp_path):
    out = tmp_path / "benchmark.json"
    program = PROGRAM.format(marker=str(tmp_path / "interrupted"))
    command = [sys.executable, "-c", program, f"--out={out}", "--quick", "--tables=clock"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=240)
    earlier = json.loads(out.read_text())
    out.write_text(json.dumps(earlier | {"packages": earlier["packages"] | {"jax": "0.1"}}))
    second = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert first.returncode == 130
    assert first.stderr.strip().endswith("interrupted; the same command continues from here")
    assert second.returncode == 0, second.stderr
    record = json.loads(out.read_text())
    assert {"device", "packages", "python", "rows"} <= set(record)
    assert record["packages"] == earlier["packages"] | {"jax": f"0.1 and {earlier['packages']['jax']}"}
    assert f"jax {earlier['packages']['jax']}" in second.stdout
    one, two = (record["rows"][f"clock: {name} (quick)"] for name in ("one", "two"))
    assert f"at {one['at']:,.0f}" in first.stdout
    assert one["at"] < two["at"]
    text = out.with_suffix(".md").read_text()
    assert "\n## clock\n\nWhen and where.\n" in text
    assert "0.50000 (0.25000) 12.5%" in text


def test_interpolated_times_stand_beside_those_learned_for_the_number(monkeypatch, tmp_path):
    """The table on the ring, with learning of two steps."""

    def small(network, solver, nfe):
        config = gaussian.get_config()
        config.solver.nfe, config.teacher.nfe, config.teacher.cache = nfe, 8, str(tmp_path)
        config.data.train = config.data.test = config.learn.batch_size = 10
        config.learn.steps, config.learn.init, config.solver.order = 2, "logsnr", 1
        return config

    monkeypatch.setattr(tables, "configured", small)
    monkeypatch.setattr(tables, "_KNOWN", (4, 6))
    ((name, measure),) = tables.interpolation_table(quick=True)
    row = measure()
    assert (name, [*row]) == ("hsc32 5", ["best standard grid", "interpolated", "times"])
    assert all(len(errors) == 3 and min(errors) >= 0 for errors in row.values())


def test_every_change_of_the_ablation_can_be_run():
    for _, measure in ablation.ablation_table(quick=False):
        config = tables.configured("hsc32", "dpmpp", 5)
        measure.args[0](config)
        assert Run.of(config).learner


def test_a_table_that_does_not_exist_is_refused(tmp_path):
    result = main("benchmark", f"--out={tmp_path / 'b.json'}", "--tables=speed", check=False)
    assert result.returncode == 1
    known = ["ablation", "docking", "interpolation", "learners", "network", "transfer"]
    assert f"--tables takes some of {known}, got ['speed']" in result.stderr


def test_rows_of_another_device_are_not_mixed_with_those_of_this_one(tmp_path):
    path = tmp_path / "b.json"
    path.write_text('{"device": "abacus", "packages": {}, "rows": {}}')
    result = main("benchmark", f"--out={path}", check=False)
    assert f"{path} was measured on abacus; take another file with --out" in result.stderr
    assert "abacus" in path.read_text()


@pytest.mark.parametrize(
    "content",
    ['{"rows": {"what: hs', "[]", '{"rows": [1]}', '{"rows": {"a": 1}}', '{"rows": {"a": {"b": [1]}}}', "\0\1"],
)
def test_a_damaged_file_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"benchmark\.json: not (a benchmark|valid JSON)"):
        tables.read(path)
    assert path.read_text() == content
