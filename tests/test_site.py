"""What the site shows works: its code runs, its commands parse, its keys, names and messages exist."""

import functools
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import jax
import mains
import numpy as np
import pytest
from absl import flags

import configs.default
import ld3_jax
from docs import figures
from experiments import command, configuration
from ld3_jax import interop, learning, poses, pretrained, schedules, solvers

PAGES = sorted(path for path in Path("docs").rglob("*.md"))
TEXT = {path: path.read_text() for path in PAGES}
# The code of the other pages is run by test_pytorch.py, test_interop_jax.py and test_docking.py.
ELSEWHERE = {Path("docs/guides/own-pytorch-network.md"), Path("docs/guides/other-programs.md")}
BLOCKS = [
    pytest.param(path, block, id=f"{path.stem}-{i}")
    for path, text in TEXT.items()
    if path not in ELSEWHERE and path.parent.name != "notebooks"
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
SMALLER = {", 1000)": ", 60)", "(1000, ": "(60, ", "choose=100": "choose=20", "(200, ": "(20, ", "(100, ": "(20, "}
SMALLER |= {", 100)": ", 20)"}
COMMANDS = sorted(
    {
        (path, line)
        for path, text in TEXT.items()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if " -m experiments." in line
    }
)
_SOURCES = [*Path("ld3_jax").rglob("*.py"), *Path("experiments").glob("*.py"), *Path("configs").glob("*.py")]
_MODULES_OF_INTEROP = {path.stem for path in Path("ld3_jax/interop").glob("[a-z]*")}
_SEAM = re.compile(r'"\n\s*r?f?"')  # between the parts of one message


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_the_code_of_a_page_runs_as_it_stands(page, block, tmp_path, monkeypatch):
    """On few noises, and without the learning itself, which the README's code does in test_readme.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ld3_jax, "fit", _start)
    for large, small in SMALLER.items():
        block = block.replace(large, small)
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as it is where nobody has set it
        exec(compile(block, str(page), "exec"), names)
    for array in jax.tree.leaves([names.get("samples"), names.get("x_0")]):
        assert jax.numpy.isfinite(array).all()


def _start(student, pairs, *args, **options):
    """What learning would start from on a standard grid, instead of what it would end with."""
    inspect.signature(learning.fit).bind(student, pairs, *args, **options)
    grid = learning.on_grid("logsnr", student.schedule, student.solver)
    return learning.Learned(student.solver, grid, np.asarray(grid.lam(student.schedule)))


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=str)
def test_a_command_has_the_flags_and_keys_of_its_program(page, line):
    words = shlex.split(line, comments=True)
    _, _, name = words[words.index("-m") + 1].partition(".")

    def parsed_alone(main):
        command._parse_flags(sys.argv)
        if "config" in flags.FLAGS and "run" not in flags.FLAGS.config:
            configuration.check_run(flags.FLAGS.config)

    with mock.patch.object(command, "run", parsed_alone):
        found = mains.main(name, *words[words.index("-m") + 2 :], check=False)
    assert found.returncode == 0, found.stderr


def test_the_keys_that_pages_mention_exist():
    known = configuration.flat(configs.default.get_config())
    for page, text in TEXT.items():
        for key in re.findall(r"--config\.([a-z_]+\.[\w]+)", text):
            assert key in known, (page, key)


def test_the_names_of_the_library_that_pages_mention_exist():
    for page, text in TEXT.items():
        for name in set(re.findall(r"(?<![\w/#])ld3_jax\.([a-zA-Z][\w.]*\w)", text)):
            if name.startswith("interop."):  # PyTorch and diffusers take seconds to import
                assert name.split(".")[1] in {*interop.__all__, *_MODULES_OF_INTEROP}, (page, name)
            else:
                assert _named(f"ld3_jax.{name}") is not None, (page, name)


def test_every_public_name_has_its_place_in_the_api():
    prose = "\n".join(page.read_text() for page in Path("docs/api").glob("*.md"))
    directives = re.findall(r"^::: ([\w.]+)$", prose, re.MULTILINE)
    documented = [_named(name) for name in directives if ".interop." not in name]
    for module in (ld3_jax, learning, solvers, schedules, poses, pretrained):
        for name in module.__all__:
            value, whole = getattr(module, name), f"{module.__name__}.{name}"
            assert any(value is one for one in documented) or f"`{whole}`" in prose, whole
    for name in interop.__all__:
        assert f"`{name}`" in prose, name
        place = f"ld3_jax.interop.{interop._PLACES[name]}.{interop._NAMES.get(name, name)}"
        assert place in directives


def test_the_messages_that_the_page_of_errors_quotes_are_those_of_the_programs():
    sources = "\n".join(_SEAM.sub("", path.read_text()) for path in _SOURCES)
    quoted = re.findall(r"^### `(.*?)`$", TEXT[Path("docs/faq.md")], re.MULTILINE)
    assert len(quoted) > 20
    for message in quoted:
        assert message in sources, message


def test_pictures_are_small_and_drawn_from_the_committed_figures(tmp_path):
    figures.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"error_against_calls.png", "learned_grid.png"}
    for path in [*tmp_path.iterdir(), *Path("docs/assets").iterdir()]:
        assert path.stat().st_size < 300_000, path
    assert drawn <= {path.name for path in Path("docs/assets").iterdir()}


def _named(name):
    """The object of a dotted name, whose first parts are the longest that are a module; None if there is none."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            return functools.reduce(getattr, parts[count:], found)
        except AttributeError:
            continue
    return None
