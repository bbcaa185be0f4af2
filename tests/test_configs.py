"""Every configuration holds the default's keys, and runs from end to end when shrunken."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import default
from experiments import common
from experiments import train as train_main
from ld3_jax import learning, pretrained
from ld3_jax.pretrained import download

CONFIGS = sorted(path for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "default"))
EXTRA = {"docking": ("rdkit", "MDAnalysis", "prolif")}


def load(path: Path) -> config_dict.ConfigDict:
    return runpy.run_path(str(path))["get_config"]()


def shrink(config: config_dict.ConfigDict, folder: Path) -> config_dict.ConfigDict:
    config.solver.nfe = 4
    config.teacher.nfe, config.teacher.cache = 6, str(folder / "teacher")
    config.network.random_weights = bool(config.network.file)  # of a size that runs anywhere
    # One shape of pairs throughout, and the soft surrogate in paper.py alone, for less to compile.
    config.data.train, config.data.valid, config.data.test = 2, 0, 2
    if config.network.file:
        config.learn.gamma, config.learn.move_validation = 0.0, False
    config.learn.nfes = (4, 5)
    config.learn.init = "logsnr"  # races are run in test_experiments.py
    config.learn.batch_size, config.learn.steps, config.learn.validate_every = 2, 2, 2
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_has_the_keys_of_the_default_and_no_others(path):
    assert set(common.flat(load(path))) == set(common.flat(default.get_config()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_opens_with_its_command_and_what_was_measured_or_what_it_needs(path):
    text = path.read_text()
    opening = text[: text.index('"""', 3)]
    assert f"--config=configs/{path.name}" in opening
    config = load(path)
    needed = [Path(file).name for file in (config.network.file, config.network.first_stage) if file]
    for name in needed:
        assert download.SOURCES[name].url in opening
    assert ("Needs" if needed else "Measured") in opening


def named_alone(path: Path) -> bool:
    """Whether a configuration is the default one with another network."""
    config = load(path)
    config.network.name = default.get_config().network.name
    return config.to_dict() == default.get_config().to_dict()


SURVEYS = [path for path in CONFIGS if named_alone(path)]
ELSEWHERE = ("curve", "times")  # what they change is run in test_experiments.py
OTHERS = [path for path in CONFIGS if path not in SURVEYS and path.stem not in ELSEWHERE]


@pytest.mark.parametrize("path", SURVEYS, ids=lambda path: path.stem)
def test_the_network_of_a_survey_predicts(path):
    model = pretrained.load(load(path).network.name)
    x_T, cond = model.draw(jax.random.key(0), 1)
    assert np.isfinite(jax.jit(model.model)(x_T, model.schedule.t_max, cond)).all()


@pytest.mark.parametrize("path", [*SURVEYS[:1], *OTHERS], ids=lambda path: path.stem)
def test_a_configuration_runs_from_end_to_end(path, tmp_path, capsys):
    for package in EXTRA.get(path.stem, ()):
        pytest.importorskip(package, reason="needs the packages of requirements-docking.txt")
    config = shrink(load(path), tmp_path)
    train_main.run(config, tmp_path / "run")
    learned = learning.load(tmp_path / "run" / "schedule.json")
    assert learned.solver.nfe == config.solver.nfe
    assert learned.model["name"] == config.network.name
    assert "mean vs learned" in capsys.readouterr().out
