"""The FID of samples, as papers print it: Inception's features against the reference statistics of a data set.

python -m experiments.sample --schedule=runs/cifar10/schedule.json --num=50000 --out=runs/cifar10/many/
python -m experiments.fid --samples=runs/cifar10/many/ --reference=cifar10-32x32.npz

A folder is one that experiments.sample filled, or any folder of images; it is read batch by batch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.tree_util import Partial
from PIL import Image

from experiments import common
from ld3_jax import metrics
from ld3_jax.batches import to_host
from ld3_jax.denoisers import as_pytree
from ld3_jax.disk import check_writable, read_arrays
from ld3_jax.networks import inception

_SAMPLES = common.path_flag("samples", None, "Folder of samples: .npz as experiments.sample writes, or images.")
_REFERENCE = common.path_flag("reference", None, "What to compare with: EDM's .npz of mu and sigma, or a folder.")
_OUT = common.path_flag("out", None, "Where to write the statistics of the samples, to be a reference of others.")
_WEIGHTS = common.path_flag("weights", None, "A file of Inception's weights; default those of the installed package.")
_BATCH = flags.DEFINE_integer("batch_size", 50, "Images that go through the network at a time.", **common.COUNT)
flags.mark_flags_as_required(["samples"])

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main() -> None:
    if not (_REFERENCE.value or _OUT.value):
        raise ValueError("give a --reference to compare the samples with, or --out to write their statistics")
    reference = Path(_REFERENCE.value) if _REFERENCE.value else None
    if _OUT.value:
        check_writable(Path(_OUT.value))
    known = metrics.read_statistics(reference) if reference and not reference.is_dir() else None
    network = partial(_features, as_pytree(inception.load(Path(_WEIGHTS.value) if _WEIGHTS.value else None)))
    samples = statistics(network, Path(_SAMPLES.value))
    if _OUT.value:
        metrics.write_statistics(Path(_OUT.value), samples)
        print(f"{_OUT.value}: statistics of {samples.count} samples")
    if reference:
        fid = metrics.frechet(samples, known or statistics(network, reference))
        print(f"FID {fid:.3f} of {samples.count} samples in {_SAMPLES.value} against {reference}")


@jax.jit
def _features(network: Partial, images: jax.Array) -> jax.Array:
    return network(images)


def statistics(network: Callable, folder: Path) -> metrics.Statistics:
    """Mean and covariance of the features of all images in a folder.

    Raises:
        FileNotFoundError: if it holds none.
        ValueError: if a file is damaged, or its arrays are no images.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".npz", *_ENDINGS))
    if not files:
        raise FileNotFoundError(f"{folder}: not a folder of .npz or images ({', '.join(_ENDINGS)})")

    def features() -> Iterator[np.ndarray]:
        with common.progress(f"features of {folder.name}", len(files)) as update:
            images = _images(files, update)
            while batch := list(itertools.islice(images, _BATCH.value)):
                if len({image.shape for image in batch}) > 1:
                    raise ValueError(f"{folder}: its images must have one shape")
                filled = np.resize(batch, (_BATCH.value, *batch[0].shape))  # so that one program serves all batches
                yield to_host(network(filled))[: len(batch)]

    return metrics.statistics(features())


def _images(files: Iterable[Path], update: Callable[[int], None]) -> Iterator[np.ndarray]:
    """One after the other the images (h, w, 1 or 3) in [-1, 1]."""
    for i, path in enumerate(files, 1):
        if path.suffix == ".npz":
            yield from read_arrays(path, ["samples"])[0]
        else:
            yield _decoded(path)
        update(i)


def _decoded(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
    except OSError as error:
        raise ValueError(f"{path}: no image, or damaged ({error})") from error


if __name__ == "__main__":
    common.run(main)
