"""Arrays by name that are read when they are needed, so that a file of gigabytes is never in memory as a whole."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np

_SHOWN = 5


class Lazy(Mapping[str, np.ndarray]):
    """Arrays by name; each is read again whenever it is needed, and not kept."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]):
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __len__(self) -> int:
        return len(self._readers)


def renamed(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Lazy:
    """The arrays under other names, without reading them.

    Args:
        arrays: by their present names.
        names: new name -> present name.
    """
    return Lazy({new: partial(arrays.__getitem__, old) for new, old in names.items()})


def joined(*parts: Mapping[str, np.ndarray]) -> Lazy:
    """The arrays of all parts, without reading them; if two parts share a name, the later one wins."""
    return Lazy({name: partial(part.__getitem__, name) for part in parts for name in part})


def some(names: Collection[str]) -> str:
    """The first few names of a file, for a message that should not repeat all of them."""
    shown = ", ".join(f"{name:.100}" for name in sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
