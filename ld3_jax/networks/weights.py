"""Published arrays as Flax parameters.

The Flax modules of this package give their submodules the names of the published PyTorch code (a name may contain
dots), so that one rule serves every network: a parameter's path, joined by dots, is the name of its array, with
`kernel`, `scale` and `embedding` called `weight`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ld3_jax.networks.lazy import some

_OFFICIAL = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def abstract(module: nn.Module, *args: Any, **kwargs: Any) -> PyTree:
    """The shapes and dtypes of a module's parameters when it is called like this; nothing is computed."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))["params"]


def count(params: PyTree) -> int:
    """How many numbers a pytree of arrays or shapes holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def names(shapes: PyTree, prefix: str = "") -> set[str]:
    """The published names of a module's parameters, from `abstract`."""
    return {_official_name(path, prefix) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}


def fill(
    shapes: PyTree, state: Mapping[str, np.ndarray], what: str, *, prefix: str = "", ignore: Collection[str] = ()
) -> PyTree:
    """Parameters from published arrays: PyTorch's names and layouts in, Flax's out.

    Kernels (out, in, *window) become (*window, in, out). Windows of one element are dropped where Flax has a dense
    layer, because some files hold 1 x 1 convolutions instead of matrices.

    Args:
        shapes: nested dict of shapes, from `abstract`.
        state: the published arrays by name.
        what: name of the file, for messages.
        prefix: the prefix of the names that belong to this network; others are ignored.
        ignore: endings of names that are not parameters.

    Returns:
        The parameters, on the device and in the dtypes of `shapes`. Each array is looked up once, and released before
        the next one.

    Raises:
        ValueError: if an array is missing, left over, of another shape, of integers or not finite; it is named.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    wanted = {_official_name(path, prefix): leaf for path, leaf in paths}
    kernels = {_official_name(path, prefix) for path, _ in paths if path[-1].key == "kernel"}
    theirs = {name for name in state if name.startswith(prefix) and not name.endswith(tuple(ignore))}
    for problem, which in (("lacks", wanted.keys() - theirs), ("has unknown arrays", theirs - wanted.keys())):
        if which:
            raise ValueError(f"{what} {problem}: {some(which)}")
    leaves = []
    for name, leaf in wanted.items():
        array = np.asarray(state[name])
        array = _flax_layout(array, len(leaf.shape)) if name in kernels else array
        if array.shape != leaf.shape:
            raise ValueError(
                f"{what}: {name} has the shape {array.shape} where {leaf.shape} belongs (in Flax's layout)"
            )
        if array.dtype.kind in "iub" or not np.isfinite(array).all():
            raise ValueError(f"{what}: {name} holds numbers that are not finite, or integers (quantised?)")
        leaves.append(jnp.array(array, leaf.dtype))
    return jax.tree.unflatten(structure, leaves)


def published(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters under the names and in the layouts that `fill` reads: its inverse."""
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        is_kernel = path[-1].key == "kernel"
        state[_official_name(path, "")] = np.moveaxis(array, (-2, -1), (1, 0)) if is_kernel else array
    return state


def random(shapes: PyTree, seed: int = 0) -> PyTree:
    """Parameters drawn by NumPy instead of the published ones: fast, and the same on every device.

    Kernels are normal with variance 1 / inputs, embeddings with variance 1, scales are near 1 and biases near 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "embedding":
            return noise.astype(leaf.dtype)
        if path[-1].key == "kernel":
            return (noise / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)
        return ((path[-1].key == "scale") + 0.02 * noise).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _official_name(path: Any, prefix: str) -> str:
    *modules, last = (str(entry.key) for entry in path)
    return prefix + ".".join([*modules, _OFFICIAL.get(last, last)])


def _flax_layout(kernel: np.ndarray, ndim: int) -> np.ndarray:
    while kernel.ndim > ndim and kernel.shape[-1] == 1:
        kernel = kernel[..., 0]
    return np.moveaxis(kernel, (1, 0), (-2, -1)) if kernel.ndim > 1 else kernel
