"""The benchmark as a user meets it."""

import json
import subprocess
import sys

import pytest

from configs import coefficients, gaussian
from experiments import measurements


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
    assert "| network: float32 (quick) |" in out.with_suffix(".md").read_text()


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
    case = measurements.prepared(config)
    times = measurements.fitted(case)
    more = measurements.fitted(measurements.prepared(coefficients.after_times(config)), times.found)
    assert more.losses["valid"]["start"] == pytest.approx(times.losses["valid"]["learned"], rel=1e-3)
    assert more.losses["valid"]["learned"] < more.losses["valid"]["start"]


@pytest.mark.parametrize("content", ['{"rows": {"what: hs', "[]", '{"rows": [1]}', '{"rows": {"a": 1}}', "\0\1"])
def test_a_damaged_file_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"benchmark\.json: not a benchmark"):
        measurements.read(path)
    assert path.read_text() == content
