"""The FID of folders of samples, with features that are quick to compute in the place of Inception's."""

import re

import mains
import numpy as np
import pytest
from PIL import Image

from ld3_jax import metrics
from ld3_jax.networks import inception


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """Three features: an image's mean colours."""
    monkeypatch.setattr(inception, "load", lambda path: lambda images: images.mean((1, 2)))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3)).astype(np.uint8)


@pytest.fixture
def samples(images, tmp_path):
    """Two files of five samples, as experiments.sample writes them."""
    (tmp_path / "many").mkdir()
    for first in (0, 5):
        np.savez(tmp_path / f"many/{first:08d}.npz", samples=np.float32(images[first : first + 5] / 127.5 - 1))
    return tmp_path / "many"


@pytest.fixture
def reference(tmp_path):
    found = metrics.statistics([np.random.default_rng(1).standard_normal((30, 3))])
    metrics.write_statistics(tmp_path / "reference.npz", found)
    return tmp_path / "reference.npz"


def fid(*arguments):
    return float(re.match(r"FID ([\d.]+) of 10 samples", mains.main("fid", *arguments).stdout)[1])


def test_it_is_the_frechet_distance_to_the_reference(images, samples, reference):
    features = (images / 127.5 - 1).mean((1, 2))
    expected = metrics.frechet(metrics.statistics([features]), metrics.read_statistics(reference))
    found = fid(f"--samples={samples}", f"--reference={reference}", "--batch_size=3")  # the last batch is filled up
    assert found == pytest.approx(expected, abs=6e-4)


def test_a_folder_of_pictures_is_a_reference_and_so_is_what_was_written_of_it(images, samples, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(images[::-1]):
        Image.fromarray(image // 2).save(tmp_path / f"pictures/{i}.png")
    written = tmp_path / "written.npz"
    mains.main("fid", f"--samples={tmp_path / 'pictures'}", f"--out={written}")
    against = [fid(f"--samples={samples}", f"--reference={other}") for other in (tmp_path / "pictures", written)]
    assert against[0] == against[1] > 0.1
    assert fid(f"--samples={samples}", f"--reference={samples}") == 0


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({}, ["--reference={reference}"], "error: .*folder: not a folder of .npz or images"),
        ({"a.png": b"no"}, ["--reference={reference}"], "error: .*a.png: no image, or damaged"),
        ({"a.npz": b"no"}, ["--reference={reference}"], "error: .*a.npz is damaged"),
        ({"a.png": b"no"}, [], "error: give a --reference to compare the samples with, or --out"),
        ({"a.png": b"no"}, ["--reference={reference}.gone"], "error: .*reference.npz.gone"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_error(content, arguments, message, tmp_path, reference):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    ended = mains.main("fid", f"--samples={folder}", *(a.format(reference=reference) for a in arguments), check=False)
    assert ended.returncode == 1
    assert re.match(message, ended.stderr.splitlines()[-1])
