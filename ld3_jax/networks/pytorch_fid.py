"""The names that pytorch-fid gives the arrays of the FID's Inception network.

Reference: Seitzer, pytorch-fid (github.com/mseitzer/pytorch-fid).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ld3_jax.networks import weights

_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
# pytorch-fid's names in a block: its convolutions, and its towers, whose convolutions have numbers.
_BRANCHES_5 = {"conv": "branch1x1", "tower": "branch5x5", "tower_1": "branch3x3dbl", "tower_2.conv": "branch_pool"}
_BRANCHES_6 = {"conv": "branch1x1", "tower": "branch7x7", "tower_1": "branch7x7dbl", "tower_2.conv": "branch_pool"}
_BRANCHES_7 = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BRANCHES = {
    **dict.fromkeys(("5b", "5c", "5d"), _BRANCHES_5),
    "6a": {"conv": "branch3x3", "tower": "branch3x3dbl"},
    **dict.fromkeys(("6b", "6c", "6d", "6e"), _BRANCHES_6),
    "7a": {"tower": "branch3x3", "tower_1": "branch7x7x3"},
    **dict.fromkeys(("7b", "7c"), _BRANCHES_7),
}


def parameters(shapes: PyTree, state: Mapping[str, np.ndarray], what: str) -> PyTree:
    """Inception's parameters; the scale of pytorch-fid's batch normalisation goes into kernel and mean.

    Args:
        shapes: the shapes of the parameters, by the names of `inception`.
        state: pytorch-fid's arrays by name.
        what: the file, for messages.

    Raises:
        ValueError: if an array is missing, unknown or of another shape.
    """
    theirs = {
        _name(name): {
            "conv": {"kernel": shape["kernel"]},
            "bn": dict.fromkeys(("scale", "bias", "running_mean", "running_var"), shape["var"]),
        }
        for name, shape in shapes.items()
    }
    filled = jax.tree.map(
        np.asarray, weights.fill(theirs, state, what, ignore=("num_batches_tracked", "fc.weight", "fc.bias"))
    )
    params = {}
    for name in shapes:
        conv, bn = (filled[_name(name)][part] for part in ("conv", "bn"))
        kernel, mean = conv["kernel"] * bn["scale"], bn["running_mean"] * bn["scale"]
        params[name] = {"kernel": kernel, "beta": bn["bias"], "mean": mean, "var": bn["running_var"]}
    return jax.tree.map(jnp.asarray, params)


def _name(name: str) -> str:
    """pytorch-fid's name of a convolution: "mixed_8.tower_1.conv_2" is its "Mixed_7a.branch7x7x3_3"."""
    block, _, branch = name.partition(".")
    number = int(block.partition("_")[2] or 0)
    if not branch:
        return f"Conv2d_{_STEM[number]}"
    names = _BRANCHES[_BLOCKS[number]]
    if branch in names:
        return f"Mixed_{_BLOCKS[number]}.{names[branch]}"
    tower, _, conv = branch.partition(".conv")
    return f"Mixed_{_BLOCKS[number]}.{names[tower]}_{int(conv[1:] or 0) + 1}"
