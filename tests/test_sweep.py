"""The sweep as a user meets it; README and documentation have the figures of the committed one."""

import csv
import functools
import itertools
import json
import re
import threading
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from mains import main, module

from configs.sweeps import galaxies, networks, seeds
from experiments import cells, page
from experiments.cells import Cell, Figures, Measured
from ld3_jax import comparison, learning
from ld3_jax.grids import GRIDS

RESULTS = Path("results")
CONFIG = """
from configs.sweeps import galaxies

def get_config():
    c = galaxies.get_config()
    c.networks, c.solvers, c.nfes, c.run.data.test = ("ring",), ("ddim",), (2, 3, 4), 30
    c.baselines, c.probes = ("dmn", "gits"), 4
    c.run.teacher.nfe, c.run.teacher.cache, c.run.data.train = 8, {cache!r}, 10
    c.run.learn.steps, c.run.learn.init, c.run.learn.valid_batch = 2, "logsnr", 5
    return c
"""
SOLVERS = {"DPM-Solver++ 3M": "dpmpp", "UniPC-3": "unipc", "iPNDM-4": "ipndm"}


def judged(mean, median=0.5, frechet=None):
    return Figures(mean, mean / 2, 2 * mean, median, 0.25, frechet, [-1.0, 0.0, 1.0])


def measured(cell, config=None, **methods):
    """A cell whose methods have the mean 0.4, if nothing else is said."""
    methods = {name: judged(0.4) for name in (*GRIDS, *cells.LEARNED)} | methods
    return Measured(cell, 30, "no device", config or {}, methods)


@functools.cache
def committed(sweep):
    """The cells of a CSV in results/, which has all of them but their configurations and devices."""
    found = {}
    with (RESULTS / f"{sweep}.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            cell = Cell(line["network"], line["solver"], int(line["nfe"]), int(line["seed"]))
            one = found.setdefault(cell, Measured(cell, int(line["held_out"]), "", {}, {}))
            figures = {name: float(line[name]) for name in ("mean", "low", "high", "median", "another_basin")}
            figures |= {"frechet": float(line["frechet"]) if line["frechet"] else None, "start": line["start"]}
            lam, calls = [*map(float, line["lam"].split())], int(line["network_calls"])
            one.methods[line["method"]] = Figures(**figures, lam=lam, network_calls=calls)
    return list(found.values())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Three cells of which the first is measured, the second is there, and the third is damaged."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "config.py").write_text(CONFIG.format(cache=str(folder / "teacher")))
    arguments = (f"--config={folder / 'config.py'}", f"--workdir={folder}")
    with mock.patch.object(comparison, "run_in_batches", wraps=comparison.run_in_batches) as run:
        first = main("sweep", *arguments, "--config.nfes=(2,)")
    assert {call.kwargs["batch_size"] for call in run.call_args_list} == {5}
    there = cells.read(Cell("ring", "ddim", 2, 0).path(folder))
    config = there.config | {"solver": there.config["solver"] | {"nfe": 3}}
    cells.write(folder, measured(Cell("ring", "ddim", 3, 0), config, times=judged(0.2), everything=judged(0.1)), None)
    Cell("ring", "ddim", 4, 0).path(folder).write_text("{}")
    before = [Cell("ring", "ddim", nfe, 0).path(folder).read_bytes() for nfe in (2, 3, 4)]
    second = main("sweep", *arguments, check=False)
    assert before == [Cell("ring", "ddim", nfe, 0).path(folder).read_bytes() for nfe in (2, 3, 4)]
    return folder, first, second


def test_a_cell_is_measured_and_written(workdir):
    folder, first, _ = workdir
    found = cells.read(Cell("ring", "ddim", 2, 0).path(folder))
    assert [*found.methods] == [*GRIDS, "dmn", "gits", "times", "everything"]
    assert found.methods["everything"].mean < found.methods["logsnr"].mean
    assert found.methods["everything"].start == "logsnr"
    assert found.methods["gits"].network_calls == 0 < found.methods["times"].network_calls
    for name, one in found.methods.items():
        assert one.low <= one.mean <= one.high, name
        assert f"{page.label(name):<20} {one.mean:.5f} ({one.median:.5f})" in first.stdout
    schedule = json.loads((folder / "schedules" / "ring-ddim-2-0-times.json").read_text())
    assert schedule["model"]["name"] == "ring"
    assert schedule["lam"] == pytest.approx(found.methods["times"].lam, rel=1e-5)


def test_finished_cells_are_not_measured_again_and_a_damaged_one_stops_nothing(workdir):
    folder, _, second = workdir
    assert second.returncode == 1
    assert second.stderr.strip().splitlines()[-1].startswith("error: 1 of 3 cells failed; the others are measured")
    assert "ring-ddim-4-0.json: not a cell of a sweep; remove it, and it is measured again" in second.stderr
    assert "times + coefficients 0.10000 (0.50000)" in second.stdout  # of the cell that was there
    assert "times, 2 cells" in (folder / "sweep.html").read_text()
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_csv_has_a_line_for_each_method_of_each_cell(workdir):
    folder, *_ = workdir
    with (folder / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 + 6
    (line,) = (line for line in lines if line["nfe"] == "3" and line["method"] == "times")
    assert float(line["mean"]) == 0.2
    assert line["lam"] == "-1 0 1"


def test_another_configuration_of_a_cell_is_refused(workdir):
    folder, *_ = workdir
    arguments = (f"--config={folder / 'config.py'}", f"--workdir={folder}", "--config.nfes=(2,)")
    result = main("sweep", *arguments, "--config.run.learn.steps=3", check=False)
    assert result.returncode == 1
    assert "learn.steps: 2, here 3; take another workdir" in result.stderr


def test_of_two_processes_the_later_report_has_the_cells_of_both(tmp_path, monkeypatch):
    sweep = module("sweep")
    cells.write(tmp_path, measured(Cell("a", "ddim", 3, 0)), None)
    other = threading.Thread(target=sweep.write_report, args=(tmp_path,))

    def slow(found):
        if not other.ident:
            cells.write(tmp_path, measured(Cell("b", "ddim", 3, 0)), None)
            other.start()
            other.join(0.2)
        return b""

    monkeypatch.setattr(page, "picture", slow)
    monkeypatch.setattr(page, "of_sweep", lambda found, *_: " ".join(one.cell.network for one in found))
    sweep.write_report(tmp_path)
    other.join()
    assert (tmp_path / "sweep.html").read_text() == "a b"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("networks", "('hsc',)", "networks takes some of"),
        ("solvers", "()", "solvers must not be empty"),
        ("probes", "101", "probes must be from 1 to run.data.train 100, got 101"),
        ("nfes", "(3,)", "solver 'ipndm' of order 4 needs an integer nfe of at least 4, got 3"),
    ],
)
def test_bad_configurations_are_refused(key, value, said, tmp_path):
    arguments = ("--config=configs/sweeps/galaxies.py", f"--workdir={tmp_path / 'new'}", f"--config.{key}={value}")
    result = main("sweep", *arguments, check=False)
    assert result.returncode == 1
    assert said in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", [{"what": ("times",)}, {"by_part": True}], ids=str)
def test_a_sweep_that_would_not_learn_everything_is_refused(change):
    config = galaxies.get_config()
    config.run.learn.update(change)
    with pytest.raises(ValueError, match=r"run\.learn\.what must be all of \['times', .* run\.learn\.by_part False"):
        cells.check_config(config)


def test_another_programs_configuration_is_refused(tmp_path):
    result = main("sweep", "--config=configs/galaxy.py", f"--workdir={tmp_path / 'new'}", check=False)
    assert result.returncode == 1
    assert "error: not the configuration of a sweep: it lacks ['networks', 'solvers'" in result.stderr
    assert not (tmp_path / "new").exists()


def test_processes_that_work_as_one_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    result = main("sweep", "--config=configs/sweeps/galaxies.py", f"--workdir={tmp_path / 'new'}", check=False)
    assert "error: one process measures a cell: start several sweeps on one workdir" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ['{"cell', "[]", "{}", "\0\1", '{"cell": 1, "methods": {}}'])
def test_a_damaged_cell_is_named(content, tmp_path):
    path = tmp_path / "ring-ddim-3-0.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"ring-ddim-3-0\.json: not (a cell|valid JSON)"):
        cells.read(path)


def test_values_of_another_kind_are_no_cell(tmp_path):
    path = Cell("a", "ddim", 3, 0).path(tmp_path)
    cells.write(tmp_path, measured(Cell("a", "ddim", 3, 0), times=judged(0.2)), None)
    sound = path.read_text()
    cells.read(path)
    changes = {'"nfe": 3': '"nfe": "3"', '"mean": 0.4': '"mean": "0.4"', "null": "[]", '"config": {}': '"config": 1'}
    changes |= {f'"{name}"': '"other"' for name in (*GRIDS, *cells.LEARNED)}
    for old, new in changes.items():
        path.write_text(sound.replace(old, new))
        with pytest.raises(ValueError, match="not a cell of a sweep"):
            cells.read(path)


def test_what_is_no_cell_stops_no_report(tmp_path):
    cells.write(tmp_path, measured(Cell("a", "ddim", 3, 0)), None)
    (tmp_path / "cells" / "folder.json").mkdir()
    cells.write(tmp_path, measured(Cell("a", "their solver", 3, 0)), None)
    cells.write(tmp_path, measured(Cell("a", "ddim", 4, 0), times=judged(0.2, frechet=1.0)), None)
    cells.write(tmp_path, measured(Cell("a", "ddim", 5, 0), {"solver": {"order": 9}}), None)
    assert [one.cell for one in cells.read_all(tmp_path)] == [Cell("a", "ddim", 3, 0)]


def test_the_summary_counts_cells_and_takes_geometric_means():
    found = [
        measured(Cell("a", "ddim", 4, 0), times=judged(0.2, 0.6), everything=judged(0.1, 0.05)),
        measured(Cell("a", "ddim", 8, 0), logsnr=judged(0.1), times=judged(0.2), everything=judged(0.1)),
    ]
    of_times, everything = page.summary(found)
    assert "times, 2 cells: the geometric mean of learned / best standard grid is 1.000 for means and 1.095" in of_times
    assert "the mean is above it in 1 cells, the median in 1;" in of_times
    assert "in 0 of 1 the mean is no higher" in of_times
    assert "is 0.500 for means and 0.316 for medians" in everything
    assert "in 1 of 1 the mean is no higher" in everything
    assert page.summary([]) == []


def test_frechet_distances_are_counted_against_every_standard_grid():
    grids = {name: judged(0.4, frechet=float(i)) for i, name in enumerate(GRIDS, 1)}
    found = measured(
        Cell("a", "ddim", 4, 0), **grids, times=judged(0.1, frechet=2.0), everything=judged(0.1, frechet=0.5)
    )
    of_times, everything = page.summary([found])
    assert of_times.endswith("in 0 of 1")
    assert everything.endswith("in 1 of 1")


def test_the_page_needs_nothing_beside_itself_and_draws_every_panel(tmp_path):
    shown = [one for one in committed("galaxies") if one.cell.network in ("hsc32", "lsst60")]
    (tmp_path / "cells").mkdir()
    for one in shown:
        one.cell.path(tmp_path).with_suffix(".png").write_bytes(b"a picture")
    text = page.of_sweep(shown, tmp_path, "")
    assert "://" not in text
    assert not re.search(r"""\bsrc=['"](?!data:)|@import|<link|href="(?!#)|url\((?!#)|\bfetch\(""", text)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(names)
    assert len(names) == len(set(names))
    for statistic in page.STATISTICS:
        assert f"<div class={statistic}><img alt=" in text
    assert text.count("<figcaption>") == len({one.cell[:2] for one in shown})
    assert text.count("<tr><td>") == sum(len(one.methods) for one in shown)


@pytest.mark.parametrize("sweep", ["galaxies", "networks", "seeds"])
def test_a_committed_csv_is_as_a_sweep_writes_it(sweep):
    assert (RESULTS / f"{sweep}.csv").read_bytes() == page.as_csv(committed(sweep))


def test_the_page_of_results_has_the_figures_of_the_cells():
    section = Path("docs/results.md").read_text().partition("## Five calls")[2].partition("\n## ")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    assert rows
    meant = {"best standard grid": GRIDS, "times learned": ["times"], "times + coefficients": ["everything"]}
    by_cell = {one.cell: one.methods for one in committed("galaxies")}
    for network, solver, *figures in rows:
        for column, figure in zip(header[2:], figures, strict=True):
            kind, _, method = column.rpartition(": ")
            method, _, calls = method.partition(", ")
            methods = by_cell[network, SOLVERS[solver], int(calls.removesuffix(" calls") or 5), 0]
            best = min((methods[name] for name in meant[method]), key=lambda one: one.frechet if kind else one.mean)
            expected = f"{best.frechet:.4f}" if kind else f"{best.mean:.4f} ({best.median:.4f})"
            assert figure == expected, (network, solver, column)


def test_the_readme_has_the_figures_of_the_cells():
    section = Path("README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    assert 1 < len(rows) <= 6
    by_cell = {one.cell: one for one in committed("galaxies")}
    for network, *figures in rows:
        for column, figure in zip(header[1:], figures, strict=True):
            method, calls = re.fullmatch(r"(.*), (\d+) calls", column).groups()
            cell = by_cell[network, "dpmpp", int(calls), 0]
            labels = {page.label(name): one for name, one in cell.methods.items()} | {page.BEST: cell.best_grid}
            assert figure == f"{labels[method].mean:.4f}", (network, column)


@pytest.mark.parametrize("sweep", [galaxies, networks, seeds])
def test_the_committed_cells_are_the_cells_of_the_configuration(sweep):
    config, found = sweep.get_config(), committed(sweep.__name__.rpartition(".")[2])
    assert {one.cell for one in found} == {*cells.all_cells(config)}
    assert len(found) == len(cells.all_cells(config))
    for one in found:
        assert one.held_out == config.run.data.test
        assert [*one.methods] == [*GRIDS, *config.baselines, *cells.LEARNED]


def test_what_the_committed_cells_learned_is_in_the_archive(tmp_path):
    zipfile.ZipFile(RESULTS / "schedules.zip").extractall(tmp_path)
    for one in committed("galaxies") + committed("networks"):
        for name in cells.LEARNED:
            learned = learning.load(tmp_path / f"{one.cell.path(tmp_path).stem}-{name}.json")
            assert learned.lam == pytest.approx(one.methods[name].lam, rel=1e-4, abs=1e-4)
    assert len([*tmp_path.iterdir()]) == 2 * len(committed("galaxies") + committed("networks"))


def test_the_documentation_says_what_the_cells_say_together():
    text = " ".join(Path("docs/results.md").read_text().split())
    for line in page.summary(committed("galaxies")):
        assert line[1:] in text


def test_the_page_that_says_what_to_choose_has_the_figures_of_the_cells():
    text, found = Path("docs/choosing.md").read_text(), committed("galaxies")
    rows = [line for line in text.splitlines() if re.match(r"\| (4|5|6|8|10) \|", line)]
    means = {
        "no: best standard grid": lambda one: one.best_grid.mean,
        "times": lambda one: one.methods["times"].mean,
        "times + coefficients": lambda one: one.methods["everything"].mean,
    }
    expected = []
    for nfe, (learned, mean) in itertools.product((5, 6, 10), means.items()):
        of = [[mean(one) for one in found if one.cell[1:3] == (solver, nfe)] for solver in SOLVERS.values()]
        expected.append(f"| {nfe} | {learned} | {' | '.join(f'{page.geometric_mean(one):.4f}' for one in of)} |")
    for nfe in (4, 5, 6, 8, 10):
        some = [one for one in found if one.cell.nfe == nfe and one.cell.solver != "ipndm"]
        of = [page.geometric_mean(page.shares(some, name)) for name in cells.LEARNED]
        expected.append(f"| {nfe} | {' | '.join(f'{mean:.2f} ({median:.2f})' for mean, median in of)} |")
    assert rows == expected


def test_the_documentation_has_the_shares_of_the_cells():
    text = Path("docs/results.md").read_text()
    others = committed("networks")
    for network in networks.get_config().networks:
        ratios = [page.shares([one for one in others if one.cell.network == network], name) for name in cells.LEARNED]
        above = ", ".join(str(int((ratio[:, 0] > 1).sum())) for ratio in ratios)
        assert f"| {network} | {' | '.join(map(shown, ratios))} | {above} of 6 |" in text
    five = [one for one in committed("galaxies") if one.cell.nfe == 5] + committed("seeds")
    for network in seeds.get_config().networks:
        of_seed = [
            [one for one in five if one.cell[0] == network and one.cell.seed == seed]
            for seed in (0, *seeds.get_config().seeds)
        ]
        row = (shown(page.shares(some, "everything")) for some in of_seed)
        assert f"| {network} | {' | '.join(row)} |" in text


def shown(ratios):
    mean, median = page.geometric_mean(ratios)
    return f"{mean:.3f} ({median:.3f})"


SECTIONS = [("Learners", "learners"), ("Transfer", "transfer"), ("Times for other", "interpolation")]


@pytest.mark.parametrize(("title", "table"), SECTIONS)
def test_the_documentation_has_the_figures_of_the_benchmark(title, table):
    section = Path("docs/results.md").read_text().partition(f"## {title}")[2].partition("\n## ")[0]
    rows = json.loads(Path("results/benchmark.json").read_text())["rows"]
    measured = {
        f"{value[0]:.5f} ({value[1]:.5f})"
        for key, row in rows.items()
        for value in row.values()
        if key.startswith(f"{table}: ") and isinstance(value, list)
    }
    figures = re.findall(r"\d\.\d{5} \(\d\.\d{5}\)", section)
    assert figures
    assert set(figures) <= measured
