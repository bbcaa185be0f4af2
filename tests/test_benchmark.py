"""The benchmark as a user meets it."""

import json
import subprocess
import sys


def test_the_quick_benchmark_measures_saves_and_does_not_measure_again(tmp_path):
    out = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "experiments.benchmark", f"--out={out}", "--quick", "--tables=network"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert first.returncode == 0, first.stderr
    record = json.loads(out.read_text())
    assert {"device", "packages", "python", "rows"} <= set(record)
    assert record["packages"]["jax"] in first.stdout
    assert all(row["learning s"] > 0 and row["TFLOP/s"] > 0 for row in record["rows"].values())
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.stdout == first.stdout
    assert json.loads(out.read_text()) == record


def test_a_table_that_does_not_exist_is_refused(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--out={tmp_path / 'b.json'}", "--tables=speed"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 1
    assert "--tables takes some of ['curve', 'learners', 'network', 'what'], got ['speed']" in result.stderr
