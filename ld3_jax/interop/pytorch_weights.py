"""The weights of PyTorch modules: where they are, a digest of them, and whether they changed since."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Weights(NamedTuple):
    """All that some modules compute with."""

    parts: list[torch.nn.Module]  # all modules in them
    tensors: list[torch.Tensor]  # those whose changes PyTorch counts
    changes: int
    device: torch.device  # of the first one
    dtype: torch.dtype  # that most of their numbers have; some modules keep norms and embeddings in single precision
    digest: bytes  # SHA-256 of the modules' text, of names, shapes, dtypes and bytes

    def require_unchanged(self, name: str) -> None:
        """Refuse modules that were changed in place, or put into training mode, with a ValueError."""
        if sum(one._version for one in self.tensors) != self.changes:
            raise ValueError(f"the weights of {name} changed after it was made a network: make it one again")
        require_eval(self.parts, name)


def weights_of(modules: Sequence[torch.nn.Module], name: str) -> Weights:
    """The weights of modules in eval mode.

    Raises:
        ValueError: if a module is in training mode, or weights are on the device "meta".
    """
    parts = [part for module in modules for part in module.modules()]
    require_eval(parts, name)
    states = [list(_leaves(module.state_dict())) for module in modules]
    tensors = [leaf for state in states for _, leaf in state if isinstance(leaf, torch.Tensor)]
    if any(one.is_meta for one in tensors):
        raise ValueError(f"{name} has weights on PyTorch's device 'meta': they were not loaded")
    floats = [one for one in tensors if one.is_floating_point()] or [torch.zeros(())]
    sizes: Counter[torch.dtype] = Counter()
    for one in floats:
        sizes[one.dtype] += one.numel()
    found = hashlib.sha256()
    for module, state in zip(modules, states, strict=True):
        found.update(_ADDRESS.sub("", repr(module)).encode())
        for key, leaf in state:
            found.update(f"{key} {_described(leaf)}".encode())
            found.update(_bytes(leaf) if isinstance(leaf, torch.Tensor) else b"")
    counted = [one for one in tensors if not one.is_inference()]
    changes = sum(one._version for one in counted)
    return Weights(parts, counted, changes, floats[0].device, sizes.most_common(1)[0][0], found.digest())


def require_eval(parts: Sequence[torch.nn.Module], name: str) -> None:
    """Refuse modules in training mode, where dropout draws and batch statistics change, with a ValueError."""
    if training := sorted({type(part).__name__ for part in parts if part.training}):
        raise ValueError(f"{name} is in training mode ({', '.join(training[:4])}): call its eval() first")


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state_dict. Quantised modules have tuples in it, and tensors that are made of others."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        yield from _leaves(dict(enumerate(tree)), path)
    elif hasattr(tree, "__tensor_flatten__"):
        yield from _leaves({name: getattr(tree, name) for name in tree.__tensor_flatten__()[0]}, path)
    else:
        yield path, tree


def _described(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else _ADDRESS.sub("", repr(leaf))


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.dequantize() if tensor.is_quantized else tensor
    return plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
