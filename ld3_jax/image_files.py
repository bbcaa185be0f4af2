"""Folders of images, written by `experiments.sample` or anything else, read one image at a time.

A .npz holds images (n, h, w, channels): `samples` in [-1, 1], or 8 bits as guided-diffusion's `arr_0`.
"""

import glob
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from ld3_jax.disk import read_arrays

_ENDINGS = (".npz", ".png", ".jpg", ".jpeg", ".webp", ".bmp")
_OTHERS = {".npy", *Image.registered_extensions()}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # others run programs: Pillow hands an EPS of any name to Ghostscript
_MOST, _RINGING = 2.0, -0.1  # images in [-1, 1] go a little beyond; resized images in [0, 1] fall below 0


def find(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, in order.

    Raises:
        FileNotFoundError: if there are none, or images of other formats.
    """
    every = (folder / name for name in glob.glob("**", root_dir=folder, recursive=True))  # hidden files are left out
    kinds = {path: path.suffix.lower() for path in sorted(every) if path.is_file()}
    files = [path for path, kind in kinds.items() if kind in _ENDINGS]
    others = [path for path, kind in kinds.items() if kind in _OTHERS.difference(_ENDINGS)]
    if others or not files:
        of = f"{others[0]}: not one" if others else f"{folder}: not a folder"
        raise FileNotFoundError(f"{of} of .npz or images ({', '.join(_ENDINGS[1:])})")
    return files


def read(
    files: Iterable[Path], on_file: Callable[[int], None] = lambda done: None
) -> Iterator[Float[np.ndarray, "h w channels"]]:
    """Yield the images one at a time, with 1 or 3 channels in [-1, 1] and one shape.

    Args:
        files: see `find`.
        on_file: called with the number of files done.

    Raises:
        ValueError: if a file is damaged, its arrays are not images, or images differ in shape.
    """
    shapes = set()
    for i, path in enumerate(files, 1):
        for image in _samples(path) if path.suffix.lower() == ".npz" else [_decoded(path)]:
            shapes.add(image.shape)
            if len(shapes) > 1:
                raise ValueError(f"{path.parent}: its images must have one shape, got {sorted(shapes)}")
            yield image
        on_file(i)


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
            clear = image.has_transparency_data and (wide or np.asarray(shown.convert("RGBA"))[..., 3].min() < 255)
            if clear or getattr(image, "n_frames", 1) > 1:
                raise ValueError("an animation, or with transparent pixels, which viewers show in different ways")
            if wide:  # 16 bits, which convert() would clip
                return np.repeat(np.asarray(shown, np.float32)[..., None] / 32767.5 - 1, 3, -1)
            return np.asarray(shown.convert("RGB"), np.float32) / 127.5 - 1
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path}: not an image, or damaged ({error})") from error
