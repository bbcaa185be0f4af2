"""Text conditions of a pipeline: the outputs of `encode_prompt` for all prompts, returned for any batch of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch

_CHUNK = 32  # prompts that are encoded at a time


@dataclass(frozen=True)
class _Grows:
    parts: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Encoded:
    """The outputs of `encode_prompt`, in all its calls.

    Attributes:
        cond: arrays with an axis of prompts in front.
        leaves: for each leaf of the outputs: how many rows a prompt has, and its dtype; or the leaf itself, if it does
            not grow with the number of prompts.
        structure: the structure of the outputs.
    """

    cond: list[np.ndarray]
    leaves: list[Any]
    structure: Any

    def of(self, cond: Sequence[torch.Tensor]) -> list[Any]:
        """The output of each of its calls for a batch of conditions."""
        rest = iter(cond)
        return jax.tree.unflatten(self.structure, [self._leaf(one, rest) for one in self.leaves])

    def _leaf(self, kept: Any, rest: Iterator[torch.Tensor]) -> Any:
        if not isinstance(kept, _Grows):
            return kept
        leaf = next(rest).to(kept.dtype)
        return leaf if kept.parts == 1 else leaf.transpose(0, 1).flatten(0, 1)


def encoded(
    encode: Callable[[Sequence[str]], list[Any]],
    prompts: Sequence[str],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded:
    """Encode prompts, in batches if these give the same result; a pipeline may pad to the longest prompt of a batch.

    Args:
        encode: encode(prompts) -> the output of `encode_prompt`, call by call: tensors in tuples, and None.
        prompts: at least one.
        on_batch: called with the numbers of prompts encoded and to encode.

    Raises:
        ValueError: if the rows of a tensor are not the same number for each prompt.
    """
    several = [*prompts] * (2 if len(prompts) == 1 else 1)  # one prompt alone would not show what grows
    alone, done, parts = _by_path(encode(several[:1])), 0, []
    for chunk in np.array_split(np.asarray(several, object), -(-len(several) // _CHUNK)):
        parts.append(_split(encode(chunk.tolist()), len(chunk), alone))
        on_batch(min(done := done + len(chunk), len(prompts)), len(prompts))
    forms = {(part.structure, *(leaf.shape[1:] for leaf in part.cond)) for part in parts}
    if len(forms) > 1:
        parts = [_split(encode(several), len(several), alone)]
    cond = [np.concatenate(leaves)[: len(prompts)] for leaves in zip(*(part.cond for part in parts), strict=True)]
    return Encoded(cond, parts[0].leaves, parts[0].structure)


def _by_path(outputs: list[Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _split(outputs: list[Any], count: int, alone: dict[str, Any]) -> Encoded:
    """Outputs for `count` prompts, given the outputs for one: which leaves grow with the number, and which do not."""
    cond, leaves = [], []
    for path, leaf in _by_path(outputs).items():
        if not torch.is_tensor(leaf):
            leaves.append(leaf)
            continue
        rows, of_one = len(leaf), len(alone[path]) if path in alone else 1  # a mask may exist only for several prompts
        if rows not in (of_one, count * of_one):
            raise ValueError(f"encode_prompt gives {rows} rows for {count} prompts, and {of_one} for one")
        leaves.append(leaf if rows == of_one else _Grows(of_one, leaf.dtype))
        if rows != of_one:
            ours = leaf.reshape(of_one, count, *leaf.shape[1:]).transpose(0, 1) if of_one > 1 else leaf
            cond.append((ours.float() if leaf.is_floating_point() else ours).cpu().numpy())
    return Encoded(cond, leaves, jax.tree.structure(outputs))
