"""The images from which a model's initial states below full noise are made: `Pretrained.images`."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray, PyTree

from ld3_jax import image_files
from ld3_jax.batches import check_finite
from ld3_jax.disk import read_arrays
from ld3_jax.pretrained.model import Images, Pretrained
from ld3_jax.ranges import shown
from ld3_jax.teacher import Teacher, make_pairs

_TEACHER = Teacher()


def by_teacher(model: Pretrained, teacher: Teacher = _TEACHER) -> Images:
    """A model's own samples, made by a teacher from full noise.

    Args:
        model: the model, which starts at full noise.
        teacher: solver, grid and batches; with a cache, samples are not made twice.
    """
    return Partial(partial(_sampled, model, replace(teacher, drop_not_finite=False)))


def _sampled(
    model: Pretrained, teacher: Teacher, key: PRNGKeyArray, count: int, first: int = 0, cond: PyTree = None
) -> PyTree:
    x_T = model.draw_noise(key, count, first)
    return make_pairs(model.model, model.schedule.whole, x_T, cond, teacher=teacher).x_0


def of_states(states: Array | np.ndarray) -> Images:
    """Given states without noise, by their number; after the last one they start again."""
    return Partial(_numbered, jnp.asarray(states))


def _numbered(states: Array, key: PRNGKeyArray, count: int, first: int = 0, cond: PyTree = None) -> Array:
    return states[(first + jnp.arange(count)) % len(states)]


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """States (n, *shape) without noise from a file: what the network sees, so latents for a latent model.

    Args:
        path: a .npy; a .npz, whose array is called samples; or a folder of images or such .npz, which are read as
            images in [-1, 1] (`image_files`).
        shape: of one state.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of these or damaged, or it does not hold real floating-point numbers of this shape.
        FloatingPointError: if a state is not finite.
    """
    readers = {".npy": _of_npy, ".npz": lambda path: read_arrays(path, ["samples"])[0]}
    if not path.exists():
        raise FileNotFoundError(f"no images {path}: neither a file nor a folder")
    if path.is_dir():
        states = np.stack(list(image_files.read(image_files.find(path))))
    elif path.suffix in readers:
        states = readers[path.suffix](path)
    else:
        raise ValueError(f"images must be a .npy, a .npz or a folder, got {path}")
    if states.dtype.kind != "f" or states.shape[1:] != shape or not len(states):
        raise ValueError(
            f"{path}: states must be floating-point numbers of shape (n, {', '.join(map(str, shape))}), as the network "
            f"sees them, got {shown(states)}" + "; images of 8 bits are x / 127.5 - 1" * (states.dtype == np.uint8)
        )
    with np.errstate(over="ignore"):  # a number that is too large becomes infinite and is refused
        states = states.astype(np.float32)
    check_finite(states, str(path))
    return states


def _of_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no .npy of numbers ({error})") from error
