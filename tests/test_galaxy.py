"""The galaxy networks: parity with the module of the package that ships the weights, and refusal of wrong files."""

import importlib.metadata
import importlib.util

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax.networks import files, galaxy


def weights_file(name):
    return files.shipped(name, "galaxygrad")


def published_network(survey):
    """The package's own module with its weights, loaded by path: the package's __init__ needs more than it ships."""
    spec = importlib.util.spec_from_file_location("models_eqx", weights_file("models_eqx.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size, file = galaxy.SURVEYS[survey].size, weights_file(galaxy.SURVEYS[survey].file)
    network = module.ScoreNet((1, size, size), 4, 64, 512, 512, 4, 10.0, key=jax.random.key(0))
    return equinox.tree_deserialise_leaves(file, network)


@pytest.mark.parametrize("survey", ["hsc32", "ztf64", "lsst60", "quasar72"])  # the four smaller sizes
def test_the_noise_prediction_is_minus_sigma_times_the_published_score(survey):
    model, _, shape = galaxy.load(survey)
    network = published_network(survey)
    published = equinox.filter_jit(lambda network, x, t: jax.vmap(lambda x: network(x, t))(x))
    ours = jax.jit(lambda model, x, t: model(x, t, None))
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    for t in (1e-3, 0.5, 9.0):
        score = np.moveaxis(published(network, jnp.moveaxis(x, -1, 1), jnp.float32(t)), 1, -1)
        eps = ours(model, x, jnp.float32(t))
        sigma = np.sqrt(-np.expm1(-t))
        assert np.abs(-eps / sigma - score).max() < 1e-5 * max(1, np.abs(score).max())


def test_the_schedule_is_the_published_one(float64):
    _, schedule, shape = galaxy.load("hsc32")
    t = np.array([1e-3, 0.5, 9.0])
    assert (schedule.t_min, schedule.t_max, schedule.prior_scale, shape) == (1e-3, 10.0, 1.0, (32, 32, 1))
    np.testing.assert_allclose(schedule.alpha(jnp.asarray(t)), np.exp(-t / 2), rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(t)), np.sqrt(-np.expm1(-t)), rtol=1e-12)


def test_an_unknown_survey_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match=r"'hsc32'.*'ztf64'.*got 'sdss'"):
        galaxy.load("sdss")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "cut short or damaged"),
        (lambda content: content[:-1], "cut short or damaged"),
        (lambda content: b"", "cut short or damaged"),
        (lambda content: content + b"\0", "continues after the last array"),
    ],
    ids=["half", "one byte less", "empty", "one byte more"],
)
def test_a_damaged_file_is_refused_by_name(damage, message, tmp_path):
    path = tmp_path / "weights.eqx"
    path.write_bytes(damage(weights_file(galaxy.SURVEYS["hsc32"].file).read_bytes()))
    with pytest.raises(ValueError, match=rf"weights\.eqx.*{message}"):
        galaxy.read_weights(path, 32)


def test_a_file_for_another_size_is_refused_by_name():
    with pytest.raises(ValueError, match=r"ScoreNet32\.eqx: an array of shape .* where .* belongs"):
        galaxy.read_weights(weights_file(galaxy.SURVEYS["hsc32"].file), 64)


def _not_installed(package):
    raise importlib.metadata.PackageNotFoundError(package)


@pytest.mark.parametrize("found", [_not_installed, lambda package: None, lambda package: []])
def test_without_the_package_the_error_says_how_to_install_it(found, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", found)
    with pytest.raises(ImportError, match=r"needs galaxygrad: pip install 'ld3-jax\[galaxies\]'"):
        galaxy.load("hsc32")
