"""The FID of samples, as papers print it: Inception's features against the reference statistics of a data set.

python -m experiments.sample --schedule=runs/cifar10/schedule.json --num=50000 --out=runs/cifar10/many/
python -m experiments.fid --samples=runs/cifar10/many/ --reference=cifar10-32x32.npz

A folder is one that experiments.sample filled, or any folder of images, including its subfolders; it is read batch by
batch. A .npz holds images (n, h, w, channels): `samples` in [-1, 1], or 8 bits as guided-diffusion's `arr_0`.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.tree_util import Partial

from experiments import command
from ld3_jax import image_files, metrics
from ld3_jax.batches import to_host
from ld3_jax.denoisers import as_pytree
from ld3_jax.disk import check_writable
from ld3_jax.networks import inception

_SAMPLES = command.path_flag("samples", None, "Folder of samples: .npz as experiments.sample writes, or images.")
_REFERENCE = command.path_flag("reference", None, "What to compare with: EDM's .npz of mu and sigma, or a folder.")
_OUT = command.path_flag("out", None, "Where to write the statistics of the samples, as a reference for others.")
_WEIGHTS = command.path_flag("weights", None, "A file of Inception's weights; by default the installed package's.")
_BATCH = flags.DEFINE_integer("batch_size", 50, "Images that go through the network at a time.", **command.COUNT)
flags.mark_flags_as_required(["samples"])


def main() -> None:
    if not (_REFERENCE.value or _OUT.value):
        raise ValueError("give a --reference to compare the samples with, or --out to write their statistics")
    reference = Path(_REFERENCE.value) if _REFERENCE.value else None
    if _OUT.value:
        check_writable(Path(_OUT.value))
    known = metrics.read_statistics(reference) if reference and not reference.is_dir() else None
    network = partial(_features, as_pytree(inception.load(Path(_WEIGHTS.value) if _WEIGHTS.value else None)))
    samples = _statistics(network, Path(_SAMPLES.value))
    if _OUT.value:
        metrics.write_statistics(Path(_OUT.value), samples)
        print(f"{_OUT.value}: statistics of {samples.count} samples")
    if reference:
        fid = metrics.frechet(samples, known or _statistics(network, reference))
        print(f"FID {fid:.3f} of {samples.count} samples in {_SAMPLES.value} against {reference}")


@jax.jit
def _features(network: Partial, images: jax.Array) -> jax.Array:
    return network(images)


def _statistics(network: Callable, folder: Path) -> metrics.Statistics:
    """Mean and covariance of the features of all images in a folder."""
    files, size = image_files.find(folder), _BATCH.value

    def features() -> Iterator[np.ndarray]:
        with command.progress(f"features of {folder.name}", len(files)) as update:
            images = image_files.read(files, update)
            while batch := list(itertools.islice(images, size)):
                filled = np.resize(batch, (size, *batch[0].shape))  # so that one program serves all batches
                yield to_host(network(filled))[: len(batch)]

    return metrics.statistics(features())


if __name__ == "__main__":
    command.run(main)
