"""Pickles of published weights, read without running code from them.

A pickle names the functions that rebuild its objects, so reading one with `pickle.load` runs whatever its author chose;
EDM's files even carry their networks' source, to be executed. Here names are looked up in a short table of this
module's own functions, which make only arrays. Any other name becomes an `Inert` object, which is never imported. Names
in Python and NumPy that do not stand for data are refused, because they are there to run code.

Tensors stay where they are in the file until `Tensor.array` is called, so an optimiser's state costs no memory. Time
and memory are in proportion to the file, however it nests, repeats or shares objects.
"""

import functools
import math
import operator
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch wrote before it wrote zip archives
_DTYPES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16, "Bool": "?"}
_DTYPES |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1"}
_STORAGES = {f"torch.{name}Storage": np.dtype(code) for name, code in _DTYPES.items()}
_OF_PYTHON = {*sys.stdlib_module_names, "numpy"}
# Names in these modules that stand for data.
_DATA = re.compile(
    r"(argparse|array|collections|copyreg|datetime|decimal|enum|fractions|ipaddress|itertools|logging|pathlib|queue|"
    r"random|string|typing|uuid|zoneinfo|numpy\.(core|_core|ma|random))\.|(numpy|builtins)\.(bool|byte|complex|date|dict|"
    r"float|frozen|int|list|ndarray|object|range|slice|str|time|tuple|uint|void)|functools\.partial|re\._compile|types\.Simp"
)
_SIZED = (bytes, str, list, tuple, dict, set)
_QUOTED = 400  # characters of an error's text, which may quote a file


class Refused(ValueError):
    """A file is complete, but it is refused."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Any error (a damaged file may raise anything) becomes a ValueError that names the file and quotes little."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, ValueError) and text.startswith(what):
            raise
        if not isinstance(error, Refused):
            text = f"cut short or damaged ({type(error).__name__}: {text:.{_QUOTED}})"
        raise Refused(f"{what}: {text:.{2 * _QUOTED}}") from error


class Storage(NamedTuple):
    """Numbers in a row: their dtype, and a function that reads their bytes."""

    dtype: np.dtype
    read: Callable[[], bytes]


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The tensor as a read-only array.

        Raises:
            ValueError: if the file is cut short, or the view reaches beyond its storage or is larger than it.
        """
        dtype, data = self.storage.dtype, self.storage.read()
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or math.prod(self.shape) * dtype.itemsize > len(data):
            raise ValueError(f"a tensor of shape {self.shape} does not fit its {len(data)} bytes")
        strides = [dtype.itemsize * stride for stride in self.strides]
        try:
            return np.ndarray(self.shape, dtype, data, dtype.itemsize * self.offset, strides)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a tensor of shape {self.shape} does not fit its {len(data)} bytes ({error})") from error


class Inert:
    """Stands for a class that is not imported, or for an object of it with the state that a pickle gave."""

    def __init__(self, name: str):
        self.name = name
        self.state: Any = None

    def __call__(self, *args: Any) -> "Inert":
        return Inert(self.name)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _ignore(self, *_: Any) -> None: ...

    __setitem__ = append = extend = add = _ignore


def load(file: BufferedIOBase, what: str, storage: Callable[[np.dtype, str, int], Storage] | None = None) -> Any:
    """The next pickle of a stream: plain Python objects, NumPy arrays, `Tensor` and `Inert`.

    Args:
        file: the stream.
        what: name of the file, for messages.
        storage: storage(dtype, key, count) finds the numbers that a torch file keeps outside its pickle.

    Returns:
        The object. An array of anything but numbers is empty and of dtype object.

    Raises:
        ValueError: if the stream is cut short or damaged, needs far more work than its length justifies, or names
            anything in Python that does not stand for data. The message says what; nothing of it was imported or
            called.
    """
    with naming(what):
        return _Unpickler(file, storage).load()


def load_stream(file: BufferedIOBase, what: str) -> Any:
    """A whole file of pickles: from torch before version 1.6, or one plain pickle.

    torch's stream holds a magic number, a version, facts about the machine, the object, the keys of its storages, and
    then each storage as a count of 8 bytes and its numbers.

    Args, Returns, Raises: see `load`; the file must stay open while tensors are read from it.
    """
    first = load(file, what)
    if not isinstance(first, int) or first != _LEGACY_MAGIC:
        return first
    places: dict[str, int] = {}
    sizes: dict[str, int] = {}

    @functools.cache
    def read(key: str) -> bytes:
        file.seek(places[key])
        return file.read(sizes[key])

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        if count < 0:
            raise ValueError(f"a storage of {count} numbers")
        sizes[key] = dtype.itemsize * count
        return Storage(dtype, functools.partial(read, key))

    load(file, what)
    load(file, what)
    content = load(file, what, storage)
    keys = load(file, what)
    place = file.tell()
    end = file.seek(0, 2)
    for key in keys:
        places[key] = place + 8
        place += 8 + sizes.get(key, 0)
    if place != end or sizes.keys() - places.keys():
        raise Refused(f"{what}: cut short or damaged ({end} bytes where {place} belong)")
    return content


class _Within(BytesIO):
    """A pickle within a pickle, which holds no other."""


class _Tuple(tuple):
    """A tuple whose hash is its identity: hashing nested tuples may take forever, or overflow the stack."""

    __slots__ = ()
    __hash__ = object.__hash__


_OfPython: Any = vars(pickle)["_Unpickler"]


class _Unpickler(_OfPython):
    """The reader in pure Python; the C reader allocates whatever a damaged file says before it reads."""

    def __init__(self, file: BufferedIOBase, storage: Callable[[np.dtype, str, int], Storage] | None):
        super().__init__(file, encoding="latin1")
        self._storage, self._within, place = storage, isinstance(file, _Within), file.tell()
        self._left = 1000 + 4 * (file.seek(0, 2) - place)
        file.seek(place)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # Python 2's name is in old protocols
        if full in _REBUILD and not (self._within and full == "torch.storage._load_from_bytes"):
            return _REBUILD[full]
        if full.partition(".")[0] in _OF_PYTHON and not _DATA.match(full):
            raise Refused(f"names {full:.100}, which no file of weights needs; refused, and nothing was run")
        rebuilds = full.startswith("torch._utils._rebuild")
        return _Function(functools.partial(_unread, full)) if rebuilds else Inert(full[:_QUOTED])

    def persistent_load(self, pid: Any) -> Storage | Inert:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view) or self._storage is None:
            raise ValueError("unknown reference to a storage")
        return self._storage(_STORAGES[storage.name], key, count) if storage.name in _STORAGES else storage

    def load_reduce(self) -> None:
        self._charge()
        super().load_reduce()

    def load_build(self) -> None:
        self._charge()
        super().load_build()

    def _charge(self) -> None:
        """A short pickle could make a function copy something long any number of times."""
        given = self.stack[-1]
        within = given if isinstance(given, tuple) else ()
        self._left -= sum(len(one) for one in (given, *within) if isinstance(one, _SIZED))
        if self._left < 0:
            raise Refused("asks for more work than a file of its length needs; refused")

    load_newobj = load_reduce
    load_bytearray8 = _OfPython.load_binbytes8
    load_frozenset = _OfPython.load_tuple


def _hashed(load: Callable[[_Unpickler], None]) -> Callable[[_Unpickler], Any]:
    return lambda self: (load(self), self.stack.append(_Tuple(self.stack.pop())))


_LOADS = {code: getattr(_Unpickler, load.__name__) for code, load in _Unpickler.dispatch.items()}
_LOADS.pop(pickle.LONG4[0])  # integers of more than 2,000 bits
_Unpickler.dispatch = {code: _hashed(load) if "load_tuple" in load.__name__ else load for code, load in _LOADS.items()}


class _DType:
    """A NumPy dtype under construction: the byte order comes as state. None if it is not of numbers."""

    def __init__(self, code: str, *flags: Any):
        numeric = isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)
        self.value = np.dtype(code) if numeric else None

    def __setstate__(self, state: tuple) -> None:
        self.value = None if self.value is None else self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array under construction; NumPy's own state may hold objects."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, data = state
        if isinstance(dtype, _DType) and dtype.value is not None:
            super().__setstate__((version, shape, dtype.value, fortran, _bytes(data)))

    __setitem__: Any = None


class _Function:
    """A function of this module that a pickle can call but not change: setting its state is refused."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


def _unread(name: str, *_: Any) -> Tensor:
    def read() -> bytes:
        raise Refused(f"a tensor made by {name:.100}, which is not read")

    return Tensor(Storage(np.dtype("u1"), read), 0, (), ())


def _tensor(storage: Storage | Inert, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        return _unread(storage.name)
    index = operator.index
    return Tensor(storage, index(offset), tuple(map(index, shape)), tuple(map(index, strides)))


def _storage_of_bytes(data: bytes) -> Any:
    return load_stream(_Within(data), "a tensor")


def _persistent(meta: dict) -> Inert:
    module = Inert(meta["class_name"][:_QUOTED])
    module.state = meta["state"]
    return module


def _scalar(dtype: _DType, data: bytes | str) -> np.generic | Inert:
    return Inert("numpy.generic") if dtype.value is None else np.frombuffer(_bytes(data), dtype.value)[0]


def _bytes(data: bytes | str, *_: Any) -> bytes:
    """Decode bytes, which pickles of old protocols hold as text."""
    return data.encode("latin1") if isinstance(data, str) else memoryview(data).tobytes()


_FUNCTIONS = {
    "_codecs.encode": _bytes,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.storage._load_from_bytes": _storage_of_bytes,
    "torch.jit._pickle.build_intlist": list,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array((0,), object) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
_REBUILD = {name: _Function(function) for name, function in _FUNCTIONS.items()} | {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "dnnlib.util.EasyDict": dict,
    "numpy.dtype": _DType,
    "torch.Size": tuple,
}
