"""The weights of PyTorch modules: where they are, their digest, and whether they have changed."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

_SOME = 64  # parameters that are checked in each call
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Weights(NamedTuple):
    """All weights that some modules compute with."""

    modules: list[torch.nn.Module]
    tensors: list[torch.Tensor]  # tensors whose changes PyTorch counts
    changes: int
    seen: tuple[list[int], bytes]  # which parameters there are, and some of their numbers
    device: torch.device  # device of the first one
    dtype: torch.dtype  # dtype of most of their numbers; some modules keep norms and embeddings in single precision
    digest: bytes  # SHA-256 of the modules' text, of names, shapes, dtypes and bytes

    def require_unchanged(self, name: str) -> None:
        """Refuse modules whose weights were changed or replaced, or put into training mode, with a ValueError."""
        parts = _parts(self.modules)
        if sum(one._version for one in self.tensors) != self.changes or _seen(parts) != self.seen:
            raise ValueError(f"the weights of {name} changed after it was made a network: make it one again")
        require_eval(parts, name)


def weights_of(modules: Sequence[torch.nn.Module], name: str) -> Weights:
    """The weights of modules in eval mode.

    Raises:
        ValueError: if a module is in training mode, or weights are on the device "meta".
    """
    parts = _parts(modules)
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
    dtype = sizes.most_common(1)[0][0]
    return Weights([*modules], counted, changes, _seen(parts), floats[0].device, dtype, found.digest())


def _parts(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    return [part for module in modules for part in module.modules()]


def _seen(parts: Sequence[torch.nn.Module]) -> tuple[list[int], bytes]:
    """Which parameters there are, and one number from some of them: PyTorch does not count changes through `data`, nor
    tensors that are replaced."""
    found = [one for part in parts for one in part._parameters.values() if one is not None]
    groups: dict[Any, list[torch.Tensor]] = {}
    for one in found[:: -(-len(found) // _SOME) or 1]:
        if one.numel() and not (one.is_quantized or hasattr(one, "__tensor_flatten__")):
            number = one.detach()[tuple(size // 2 for size in one.shape)]
            groups.setdefault((one.device, one.dtype), []).append(number)
    return [*map(id, found)], b"".join(_bytes(torch.stack(numbers)) for numbers in groups.values())


def require_eval(parts: Sequence[torch.nn.Module], name: str) -> None:
    """Refuse modules in training mode, where dropout draws and batch statistics change, with a ValueError."""
    if training := sorted({type(part).__name__ for part in parts if part.training}):
        raise ValueError(f"{name} is in training mode ({', '.join(training[:4])}): call its eval() first")


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state_dict. Quantised modules have tuples in it, and tensors made of other tensors."""
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
