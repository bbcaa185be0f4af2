"""The benchmark as a user meets it."""

import json
import subprocess
import sys

import pytest

from configs import gaussian
from experiments import measurements

# The program with a table whose rows say when they were measured; the second is interrupted the first time.
PROGRAM = """
import time
from pathlib import Path
from experiments import benchmark, common

def interrupted():
    if not Path({marker!r}).exists():
        Path({marker!r}).touch()
        raise KeyboardInterrupt
    return {{"at": time.time(), "error": [0.5, 0.25, 0.125]}}

benchmark.TABLES["clock"] = table = lambda quick: [("one", lambda: {{"at": time.time()}}), ("two", interrupted)]
table.__doc__ = "When."
common.run(benchmark.main)
"""


def test_rows_are_saved_one_by_one_and_not_measured_again(tmp_path):
    out = tmp_path / "benchmark.json"
    program = PROGRAM.format(marker=str(tmp_path / "interrupted"))
    command = [sys.executable, "-c", program, f"--out={out}", "--quick", "--tables=clock"]
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=240) for _ in range(2))
    assert first.returncode == 1
    assert first.stderr.strip().endswith("interrupted; the same command goes on from here")
    assert second.returncode == 0, second.stderr
    record = json.loads(out.read_text())
    assert {"device", "packages", "python", "rows"} <= set(record)
    assert record["packages"]["jax"] in second.stdout
    one, two = (record["rows"][f"clock: {name} (quick)"] for name in ("one", "two"))
    assert f"at {one['at']:.4g}" in first.stdout
    assert one["at"] < two["at"]
    text = out.with_suffix(".md").read_text()
    assert "\n## clock\n\nWhen.\n" in text
    assert "0.50000 (0.25000) 12.5%" in text
    assert "<td>one (quick)</td>" in out.with_name("report.html").read_text()


def test_a_table_that_does_not_exist_is_refused(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--out={tmp_path / 'b.json'}", "--tables=speed"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 1
    assert (
        "--tables takes some of ['baselines', 'curve', 'docking', 'learners', 'network', 'results'], got ['speed']"
        in result.stderr
    )


def test_a_case_is_learned_and_judged(tmp_path):
    config = gaussian.get_config()
    config.teacher.nfe, config.teacher.cache = 10, str(tmp_path)
    config.data.train, config.data.valid, config.data.test = 20, 0, 20
    config.learn.steps, config.learn.batch_size = 8, 20
    case = measurements.prepared(config)
    mean, median, astray = measurements.errors(case, measurements.fitted(case)[0].found)
    hand_made = measurements.best_hand_made(case)
    assert mean < hand_made[0]
    assert median < hand_made[1]
    assert astray <= hand_made[2] <= 1
    assert measurements.best_hand_made(case, 10)[0] < hand_made[0]


@pytest.mark.parametrize(
    "content",
    ['{"rows": {"what: hs', "[]", '{"rows": [1]}', '{"rows": {"a": 1}}', '{"rows": {"a": {"b": [1]}}}', "\0\1"],
)
def test_a_damaged_file_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"benchmark\.json: not (a benchmark|valid JSON)"):
        measurements.read(path)
    assert path.read_text() == content


def test_the_summary_counts_cells_and_takes_geometric_means():
    def row(times, everything):
        return {
            "hand-made": [0.4, 0.2, 0.1],
            "hand-made, 2n calls": [0.1, 0.1, 0.0],
            "times": times,
            "everything": everything,
        }

    rows = {
        "results: a": row([0.2, 0.3, 0.0], [0.1, 0.02, 0.0]),
        "results: b": row([0.8, 0.1, 0.0], [0.025, 0.02, 0.0]),
    }
    times, everything = measurements.summary(rows | {"curve: c": {}})
    assert "times, 2 cells" in times
    assert "1.000 (medians 0.866)" in times
    assert "in 1 means and 1 medians" in times
    assert times.endswith("in 0")
    assert "0.125 (medians 0.100)" in everything
    assert everything.endswith("in 2")
    assert measurements.summary({}) == []
