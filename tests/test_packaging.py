"""What is installed: the wheel loads with the core's packages alone, and says which extra brings what is missing."""

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ld3_jax.extras import EXTRAS

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
NAMES = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}  # where the distribution has another
MOST = 14  # distributions with ld3-jax itself, but without pip and setuptools
BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
ASK = """
import ld3_jax
ld3_jax.baselines, ld3_jax.metrics, ld3_jax.networks.gaussian, ld3_jax.poses, ld3_jax.interop.read
asked = "plots checkpoint networks.lpips pretrained.load interop.LearnedScheduler interop.sample_learned"
for names in asked.split():
    found = ld3_jax
    try:
        for name in names.split("."):
            found = getattr(found, name)
    except ImportError as error:
        print(error)
"""


def distribution(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def with_dependencies(requirements):
    """The installed distributions that these bring, themselves included."""
    found, todo = set(), [*requirements]
    while todo:
        if (name := distribution(todo.pop())) not in found:
            found.add(name)
            todo += [one for one in metadata.requires(name) or () if ";" not in one]
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """A folder with the wheel's content and with the core's packages, and nothing else."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("core")
    shutil.copytree("ld3_jax", source / "ld3_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, source)
    pytest.importorskip("setuptools", "77", reason="building the wheel needs setuptools of the extra test")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    for name in with_dependencies(PROJECT["dependencies"]):
        of_package = metadata.files(name)
        for top in {file.parts[0] for file in of_package if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(Path(of_package[0].locate()).parents[len(of_package[0].parts) - 1] / top)
    return folder


def run(core, *command, cwd):
    environment = os.environ | {"PYTHONPATH": str(core)}
    return subprocess.run(
        [sys.executable, "-S", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_core_loads_alone_and_says_which_extra_brings_the_rest(core, tmp_path):
    done = run(core, "-c", ASK, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "ld3_jax.plots needs matplotlib: pip install 'ld3-jax[experiments]'",
        "ld3_jax.checkpoint needs orbax: pip install 'ld3-jax[experiments]'",
        "ld3_jax.networks.lpips needs flax: pip install 'ld3-jax[models]'",
        "ld3_jax.pretrained needs flax: pip install 'ld3-jax[models]'",
        "interop.LearnedScheduler needs diffusers: pip install 'ld3-jax[torch]'",
        "interop.sample_learned needs torch: pip install 'ld3-jax[torch]'",
    ], done.stderr[-3000:]


def test_a_program_without_its_extra_ends_with_one_line(core):
    done = run(core, "-m", "experiments.train", "--config=configs/galaxy.py", cwd=".")
    assert (done.returncode, done.stderr) == (1, "experiments needs matplotlib: pip install 'ld3-jax[experiments]'\n")


def test_the_core_is_small_and_the_wheel_has_all_files(core):
    assert len([*core.glob("*.dist-info")]) <= MOST
    for file in Path("ld3_jax").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts and file.name != "pyproject.toml":
            assert (core / file).read_bytes() == file.read_bytes()


def test_every_package_of_an_extra_is_known_and_every_package_known_is_of_its_extra():
    extras = PROJECT["optional-dependencies"]
    stated = {
        distribution(one): extra
        for extra, requirements in extras.items()
        if extra not in ("all", "docs", "notebooks", "test", "test-core")  # these bring tools
        for one in requirements
        if not one.startswith("ld3-jax[")
    }
    assert stated == {distribution(NAMES.get(package, package)): extra for package, extra in EXTRAS.items()}
    every = re.findall(r"\w+", extras["all"][0].partition("[")[2])
    assert {*every} == {*EXTRAS.values()} - {"models"}  # which the others bring
