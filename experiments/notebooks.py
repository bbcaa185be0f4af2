"""Run the notebooks, and write them with their outputs as Markdown and pictures into docs/notebooks.

python -m experiments.notebooks
"""

import time
from pathlib import Path

import jupytext
from absl import flags
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

from experiments import command
from ld3_jax.disk import write_atomically

_NAMES = flags.DEFINE_list("names", [], "Notebooks to run, without ending; default all.")
_SOURCES, _PAGES = Path("notebooks"), Path("docs/notebooks")


def main() -> None:
    paths = {path.stem: path for path in sorted(_SOURCES.glob("*.py"))}
    if unknown := set(_NAMES.value) - set(paths):
        raise ValueError(f"--names takes some of {list(paths)}, got {sorted(unknown)}")
    for name in _NAMES.value or paths:
        begun = time.monotonic()
        notebook = jupytext.read(paths[name])
        NotebookClient(notebook, timeout=1200).execute()
        _write(name, notebook)
        print(f"wrote {_PAGES / name}.md in {time.monotonic() - begun:.0f} s", flush=True)


def _write(name: str, notebook: NotebookNode) -> None:
    for cell in notebook.cells:  # what libraries tell a terminal is no result
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    page, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": name})
    page = page.replace("![png]", "![output of the code above]")
    note = f"*This page is `{_SOURCES / name}.py` with its outputs. `python -m experiments.notebooks` makes it.*"
    write_atomically(_PAGES / f"{name}.md", f"{page.strip()}\n\n{note}\n".encode())
    for path in filter(page.__contains__, resources["outputs"]):
        write_atomically(_PAGES / path, resources["outputs"][path])


if __name__ == "__main__":
    command.run(main)
