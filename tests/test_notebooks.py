"""The notebooks run, cell by cell on small settings, and their pages in docs/notebooks show their code."""

import re
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import matplotlib as mpl
import pytest

import ld3_jax

PAGES = Path("docs/notebooks").resolve()
# In place of what the cell that is tagged "parameters" sets.
SMALL = {
    "learn_galaxies": {"nfe": 3, "count": 10, "candidates": 10, "held_out": 10, "steps": 2, "start": "logsnr"},
    "own_solver": {"nfe": 2, "count": 50, "steps": 2, "calls": (4,)},
    "diffusers_scheduler": {
        "nfe": 3,
        "train_steps": 4,
        "count": 10,
        "held_out": 2,
        "steps": 1,
        "teacher_calls": 3,
        "start": "logsnr",
    },
    "manifold": {"nfe": 2, "count": 20, "steps": 1, "batch_size": 20},
}


def cells(name, kind="code"):
    return [cell for cell in jupytext.read(f"notebooks/{name}.py").cells if cell.cell_type == kind]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch, one_thread):
    mpl.use("agg")
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))  # the window of a notebook
    monkeypatch.setitem(ld3_jax.SOLVERS, "halfway", None)  # so that it is gone after the test
    code = cells(name)
    monkeypatch.chdir(tmp_path)
    variables = {"__name__": "notebook"}
    monkeypatch.setitem(sys.modules, "notebook", ModuleType("notebook"))  # dataclasses look there
    for cell in code:
        exec(compile(cell.source, f"{name}.py", "exec"), variables)
        if "parameters" in cell.metadata.get("tags", []):
            assert set(SMALL[name]) <= set(variables)
            variables |= SMALL[name]
    assert variables["learned"] if name != "own_solver" else variables["found"]


def test_all_notebooks_are_here_and_short():
    paths = sorted(Path("notebooks").glob("*.py"))
    assert [path.stem for path in paths] == sorted(SMALL)
    for path in paths:
        assert sum(map(bool, path.read_text().splitlines())) <= 120
        opening, *_ = cells(path.stem, "markdown")
        assert re.match(r"# .*\n\nWhat you will see: ", opening.source)


@pytest.mark.parametrize("name", SMALL)
def test_a_page_shows_its_notebook_s_code_and_small_pictures(name):
    page = (PAGES / f"{name}.md").read_text()
    shown = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    assert shown == [cell.source for cell in cells(name)], "python -m experiments.notebooks makes the pages again"
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures
    assert {path.relative_to(PAGES).as_posix() for path in (PAGES / name).iterdir()} == set(pictures)
    assert all((PAGES / picture).stat().st_size < 300_000 for picture in pictures)
