"""The FID of folders of samples, with features that are quick to compute in the place of Inception's."""

import re

import mains
import numpy as np
import pytest
from PIL import Image

from ld3_jax import image_files, metrics
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


RED = np.tile(np.uint8([200, 100, 50]), (2, 4, 4, 1))
RED[1] //= 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (RED, None),
        (RED / 127.5 - 1, None),
        (np.float16(RED / 127.5 - 1), None),
        (RED / 255, r"8 bits or floats in \[-1, 1\]; got float64 \(2, 4, 4, 3\) from 0.098 to 0.784"),
        (RED.astype(np.float32), "from 25 to 200"),
        (RED / 255 - 0.13, "from -0.032 to"),
        (RED[:0], r"got uint8 \(0, 4, 4, 3\)"),
        ((RED / 255 - 0.6) / 0.2, "from -2.51 to"),
        (RED.astype(int), "got int64"),
        (np.moveaxis(RED, -1, 1), r"got uint8 \(2, 3, 4, 4\)"),
    ],
)
@pytest.mark.parametrize("name", ["samples", "arr_0"])
def test_arrays_are_images_of_8_bits_or_from_minus_1_to_1(images, message, name, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: images})
    read = image_files._samples
    if message is None:
        np.testing.assert_allclose(read(tmp_path / "a.npz"), RED / 127.5 - 1, atol=1e-3)
    else:
        with pytest.raises(ValueError, match=rf"a\.npz: images are .*{message}"):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("RGB", {}, None),
        ("RGBA", {}, None),
        ("RGB", {"exif": 6}, None),
        ("I;16", {}, None),
        ("RGBA", {"alpha": 254}, "a.png: .*transparent pixels"),
        ("RGB", {"transparency": (200, 100, 50)}, "a.png: .*transparent pixels"),
        ("RGB", {"save_all": True, "append_images": [Image.new("RGB", (2, 4))]}, "a.png: .*an animation"),
        ("RGB", {"pixels": 4}, "a.png: .*could be decompression bomb"),
    ],
)
def test_pictures_are_the_pixels_that_a_viewer_shows(mode, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", options.pop("pixels", 100))
    image, expected = Image.fromarray(RED[0, :, :2]), RED[0, :, :2] / 127.5 - 1
    if mode == "I;16":
        image, expected = (
            Image.fromarray(np.uint16([[0, 30000, 65535]])),
            np.float32([[[-1] * 3, [-0.08446] * 3, [1] * 3]]),
        )
    elif mode == "RGBA":
        image.putalpha(options.pop("alpha", 255))
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112], expected = options["exif"], np.rot90(expected, -1)
        options = {"exif": exif}
    image.save(tmp_path / "a.png", **options)
    read = image_files._decoded
    if message is None:
        np.testing.assert_allclose(read(tmp_path / "a.png"), expected, atol=1e-4)
    else:
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.png")


def test_folders_within_count_hidden_files_do_not_and_all_have_one_shape(images, samples, reference):
    inner = samples / "more" / "000"
    inner.mkdir(parents=True)
    samples.joinpath("00000005.npz").rename(inner / "0.NPZ")
    (inner / "._0.npz").write_bytes(b"no image")
    assert fid(f"--samples={samples}", f"--reference={reference}") > 0  # of 10 samples
    Image.fromarray(images[0, :2]).save(inner / "z.png")
    ended = mains.main("fid", f"--samples={samples}", f"--reference={reference}", "--batch_size=5", check=False)
    assert "its images must have one shape, got [(2, 4, 3), (4, 4, 3)]" in ended.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({}, ["--reference={reference}"], "error: .*folder: not a folder of .npz or images"),
        ({"a.png": b"no"}, ["--reference={reference}"], "error: .*a.png: not an image, or damaged"),
        ({"a.npz": b"no"}, ["--reference={reference}"], "error: .*a.npz is damaged"),
        ({"a.png": b"no"}, [], "error: give a --reference to compare the samples with, or --out"),
        ({"a.png": b"no"}, ["--reference={reference}.gone"], "error: .*reference.npz.gone"),
        (
            {"a.png": b"%!PS-Adobe-3.0 EPSF-3.0"},
            ["--reference={reference}"],
            "error: .*a.png: not an image, or damaged",
        ),
        ({"a.png": b"no", "b.tif": b"no"}, ["--reference={reference}"], "error: .*b.tif: not one of .npz or images"),
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
