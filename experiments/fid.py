"""The FID of samples, as papers print it: Inception's features against the reference statistics of a data set.

python -m experiments.sample --schedule=runs/cifar10/schedule.json --num=50000 --out=runs/cifar10/many/
python -m experiments.fid --samples=runs/cifar10/many/ --reference=cifar10-32x32.npz

A folder is one that experiments.sample filled, or any folder of images, those in its folders included; it is read batch
by batch. A .npz holds images (n, h, w, channels): `samples` in [-1, 1], or 8 bits as guided-diffusion's `arr_0`.
"""

import glob
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.tree_util import Partial
from PIL import Image, ImageOps

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

_ENDINGS = (".npz", ".png", ".jpg", ".jpeg", ".webp", ".bmp")
_OTHERS = {".npy", *Image.registered_extensions()}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # others run programs: Pillow gives an EPS to Ghostscript, whatever its name
_MOST, _RINGING = 2.0, -0.1  # values of images in [-1, 1] go a little beyond, those of resized ones in [0, 1] below 0


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
    every = (folder / name for name in glob.glob("**", root_dir=folder, recursive=True))  # none that is hidden
    kinds = {path: path.suffix.lower() for path in sorted(every) if path.is_file()}
    files = [path for path, kind in kinds.items() if kind in _ENDINGS]
    others = [path for path, kind in kinds.items() if kind in _OTHERS.difference(_ENDINGS)]
    if others or not files:
        of = f"{others[0]}: not one" if others else f"{folder}: not a folder"
        raise FileNotFoundError(f"{of} of .npz or images ({', '.join(_ENDINGS[1:])})")
    shapes = set()

    def features() -> Iterator[np.ndarray]:
        with common.progress(f"features of {folder.name}", len(files)) as update:
            images = _images(files, update)
            while batch := list(itertools.islice(images, _BATCH.value)):
                shapes.update(image.shape for image in batch)
                if len(shapes) > 1:
                    raise ValueError(f"{folder}: its images must have one shape, got {sorted(shapes)}")
                filled = np.resize(batch, (_BATCH.value, *batch[0].shape))  # so that one program serves all batches
                yield to_host(network(filled))[: len(batch)]

    return metrics.statistics(features())


def _images(files: Iterable[Path], update: Callable[[int], None]) -> Iterator[np.ndarray]:
    """One after the other the images (h, w, 1 or 3) in [-1, 1]."""
    for i, path in enumerate(files, 1):
        yield from _samples(path) if path.suffix.lower() == ".npz" else [_decoded(path)]
        update(i)


def _samples(path: Path) -> np.ndarray:
    try:
        (images,) = read_arrays(path, ["samples"])
    except ValueError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        (images,) = read_arrays(path, ["arr_0"])
    whole, numbers = images.dtype == np.uint8 and images.size, images.dtype.kind == "f" and images.size
    low, high = (images.min(), images.max()) if numbers else (np.nan, np.nan)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not (whole or (-_MOST < low < _RINGING and high < _MOST)):
        raise ValueError(
            f"{path}: images are (n, h, w, 1 or 3), of 8 bits or floats in [-1, 1]; got {images.dtype} {images.shape}"
            + f" from {low:.3g} to {high:.3g}" * bool(numbers)
        )
    return images / np.float32(127.5) - 1 if whole else images.astype(np.float32)


def _decoded(path: Path) -> np.ndarray:
    """An image as a viewer shows it, (h, w, 3)."""
    try:
        bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with bombs, Image.open(path, formats=_FORMATS) as image:
            shown, wide = ImageOps.exif_transpose(image), image.mode.startswith("I")
            clear = image.has_transparency_data and (wide or shown.convert("RGBA").getextrema()[3][0] < 255)
            if clear or getattr(image, "n_frames", 1) > 1:
                raise ValueError("an animation, or with transparent pixels, which viewers show in different ways")
            if wide:  # 16 bits, which convert() would clip
                return np.repeat(np.asarray(shown, np.float32)[..., None] / 32767.5 - 1, 3, -1)
            return np.asarray(shown.convert("RGB"), np.float32) / 127.5 - 1
    except Exception as error:  # Pillow's are of many kinds
        raise ValueError(f"{path}: no image, or damaged ({error})") from error


if __name__ == "__main__":
    common.run(main)
