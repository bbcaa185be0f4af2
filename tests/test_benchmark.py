"""The benchmark as a user meets it."""

import json
import subprocess
import sys

import pytest

from configs import coefficients, gaussian
from experiments import benchmark
from ld3_jax.learning import discretization


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


def test_learning_goes_on_from_what_was_learned_before(tmp_path):
    config = gaussian.get_config()
    config.teacher.nfe, config.teacher.cache = 10, str(tmp_path)
    config.data.train, config.data.valid, config.data.test = 20, 0, 20
    config.learn.steps, config.learn.batch_size = 10, 10
    case = benchmark.prepared(config)
    times, learning = benchmark.fitted(case)
    found = discretization(times.best, case.student, learning)
    more, _ = benchmark.fitted(benchmark.prepared(coefficients.after_times(config)), found)
    assert float(more.start_loss) == pytest.approx(float(times.best_loss), rel=1e-3)
    assert more.best_loss < more.start_loss
