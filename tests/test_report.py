"""The page and the CSV of the benchmark's rows; the README's and the documentation's figures are those of the CSV."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECORD = json.loads(Path("docs/benchmark.json").read_text())
FIGURES = ("mean", "median", "another_basin")
SOLVERS = {"DPM-Solver++ 3M": "dpmpp", "UniPC-3": "unipc", "iPNDM-4": "ipndm"}
COLUMNS = {
    "best hand-made grid": "hand-made",
    "times learned": "times",
    "everything learned": "everything",
    "best hand-made grid, 10 calls": "hand-made, 2n calls",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The program's page of the committed rows, and of three that are not."""
    more = {
        "learners: invented": {"error": [0.5, 0.25, 0.125], "s": 12.5},
        "curve: invented 7": {"times": [0.75, 0.625, 0.0]},
        "network: <b>": {"parameters": 3},
    }
    folder = tmp_path_factory.mktemp("report")
    (folder / "rows.json").write_text(json.dumps(RECORD | {"rows": RECORD["rows"] | more}))
    command = [sys.executable, "-m", "experiments.report"]
    command += [f"--benchmark={folder / 'rows.json'}", f"--out={folder / 'page.html'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return folder / "page.html"


@pytest.fixture(scope="module")
def lines(page):
    with page.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_cell(lines, **cell):
    """Mean, median and share of the one line with these values."""
    (line,) = [line for line in lines if cell.items() <= line.items()]
    return [float(line[figure]) for figure in FIGURES]


def test_the_csv_has_every_error_of_the_rows_with_all_digits(lines):
    assert of_cell(lines, table="learners", network="hsc32", nfe="5", method="invented") == [0.5, 0.25, 0.125]
    assert of_cell(lines, table="curve", network="invented", solver="dpmpp", nfe="7", seed="0") == [0.75, 0.625, 0.0]
    errors = [
        (*re.findall(r"\w+", key)[:2], column, value)
        for key, row in RECORD["rows"].items()
        for column, value in row.items()
        if isinstance(value, list)
    ]
    found = [
        (line["table"], line["network"], line["method"], [float(line[figure]) for figure in FIGURES]) for line in lines
    ]
    assert len(found) == len(errors) + 2
    assert all(error in found for error in errors if error[0] in ("results", "curve", "baselines"))


def test_the_committed_files_are_those_of_the_committed_rows(page, lines):
    with Path("docs/report.csv").open(newline="") as file:
        committed = list(csv.DictReader(file))
    assert committed == [line for line in lines if "invented" not in line.values()]
    rows = re.findall("<tr><td>.*", Path("docs/report.html").read_text())
    assert rows == [row for row in re.findall("<tr><td>.*", page.read_text()) if not re.search("invented|&lt;b", row)]


def test_the_page_needs_nothing_beside_itself(page):
    for text in (page.read_text(), Path("docs/report.html").read_text()):
        assert "://" not in text
        assert not re.search(r"""\bsrc=|@import|<link|href="(?!#)|url\((?!#)|\bfetch\(""", text)
        names = re.findall(r'\bid="([^"]+)"', text)
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(names)
        assert len(names) == len(set(names))


def test_the_page_says_what_was_measured_and_draws_it(page):
    text = page.read_text()
    assert f"{RECORD['device']} with Python {RECORD['python']}, jax {RECORD['packages']['jax']}" in text
    assert "--tables=results,curve" in text
    assert 'id="curves-hsc32-dpmpp-' in text
    assert 'id="curves-hsc32-unipc-' not in text or "results: hsc32 unipc 8 seed 0" in RECORD["rows"]
    assert 'id="dots-quasar72-' in text
    assert "<td>&lt;b&gt;</td><td>3</td>" in text
    assert "<td>invented</td><td>12.5</td>" in text


def test_the_readme_has_the_figures_of_the_csv(lines):
    section = Path("README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    assert len(rows) == 12
    for network, solver, *figures in rows:
        for column, figure in zip(header[2:], figures, strict=True):
            cell = {"table": "results", "network": network, "solver": SOLVERS[solver], "nfe": "5", "seed": "0"}
            mean, median, _ = of_cell(lines, **cell, method=COLUMNS[column])
            assert figure == f"{mean:.4f} ({median:.4f})", (network, solver, column)


def test_the_figures_of_the_curve_in_the_documentation_are_those_of_the_csv(lines):
    section = Path("docs/results.md").read_text().partition("## One curve")[2].partition("\n## ")[0]
    measured = {
        f"{float(line['mean']):.5f} ({float(line['median']):.5f})" for line in lines if line["table"] == "curve"
    }
    figures = re.findall(r"\d\.\d{5} \(\d\.\d{5}\)", section)
    assert figures
    assert set(figures) <= measured
