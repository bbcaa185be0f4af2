"""Every configuration holds the default's keys, and runs from end to end when shrunken."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import default, edm
from experiments import train as train_main
from experiments.configuration import flat
from experiments.run import Run
from ld3_jax import learning
from ld3_jax.pretrained import download

CONFIGS = sorted(path for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "default"))
EXTRA = {"docking": ("rdkit", "MDAnalysis", "prolif")}


NAMES = {"edm": edm.FILES, "galaxies": ("hsc32", "hsc64", "ztf32", "ztf64", "lsst60", "roman120")}
CASES = [(path, *name) for path in CONFIGS for name in [(one,) for one in NAMES.get(path.stem, ())] or [()]]


def _id(case: tuple) -> str:
    return ":".join([case[0].stem, *case[1:]])


all_of_them = pytest.mark.parametrize("case", CASES, ids=_id)


def load(path: Path, *name: str) -> config_dict.ConfigDict:
    return runpy.run_path(str(path))["get_config"](*name)


def shrink(config: config_dict.ConfigDict, folder: Path) -> config_dict.ConfigDict:
    config.solver.nfe = 4
    config.teacher.nfe, config.teacher.cache = 6, str(folder / "teacher")
    config.network.random_weights = bool(config.network.file)  # of a size that runs anywhere
    # One shape of pairs throughout, and the soft surrogate in paper.py alone, for less to compile.
    config.data.train, config.data.valid, config.data.test = 2, 0, 2
    if config.network.file:
        config.learn.gamma, config.learn.move_validation = 0.0, False
    config.learn.init = "logsnr"  # starts are ranked in test_experiments.py
    config.learn.batch_size, config.learn.steps, config.learn.validate_every = 2, 2, 2
    return config


@all_of_them
def test_a_configuration_has_the_keys_of_the_default_and_no_others(case):
    assert set(flat(load(*case))) == set(flat(default.get_config()))


@all_of_them
def test_a_configuration_opens_with_its_command_and_what_was_measured_or_what_it_needs(case):
    path, *name = case
    text = path.read_text()
    opening = text[: text.index('"""', 3)]
    assert f"--config=configs/{path.name}" in opening
    assert not name or name[0] in opening
    config = load(*case)
    needed = [Path(file).name for file in (config.network.file, config.network.first_stage) if file]
    for name in needed:
        assert download.SOURCES[name].url in opening
    assert any(word in opening for word in (("Needs",) if needed else ("Measured", "Not measured.")))


# One of each kind of space and learner runs to the end; times does in test_experiments.py, diffusers, with latents, in
# test_pipelines.py.
WHOLE = ("docking", "gaussian", "gs", "paper")


# Their networks are compared with the published ones in test_galaxy.py.
GALAXIES = [case for case in CASES if case[0].stem == "galaxies"]
PREDICTING = [case for case in CASES if case[0].stem not in (*WHOLE, "diffusers") and case not in GALAXIES[1:]]


@pytest.mark.parametrize("case", PREDICTING, ids=_id)
def test_a_configuration_can_be_run_and_its_network_predicts(case, tmp_path):
    config = shrink(load(*case), tmp_path)
    model = Run.of(config).model
    x_T, cond = model.draw(jax.random.key(0), 1)
    predicted = jax.jit(model.model)(x_T, model.schedule.t_max, cond)
    assert predicted.shape == x_T.shape
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize("name", WHOLE)
def test_a_configuration_runs_from_end_to_end(name, tmp_path, capsys):
    for package in EXTRA.get(name, ()):
        pytest.importorskip(package, reason="needs the extra docking")
    config = shrink(load(Path(f"configs/{name}.py")), tmp_path)
    train_main.run(config, tmp_path / "run")
    learned = learning.load(tmp_path / "run" / "schedule.json")
    assert learned.solver.nfe == config.solver.nfe
    assert learned.model["name"] == config.network.name
    assert "mean vs learned" in capsys.readouterr().out


def test_a_network_of_edm_whose_file_has_no_usual_name_must_be_given_one():
    assert edm.get_config("cifar10_ve").network.file == ""
    assert edm.get_config("ffhq64").network.file.endswith("edm-ffhq-64x64-uncond-vp.pkl")
