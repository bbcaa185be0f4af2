"""Pickles of published weights, read without running code from them.

A pickle names the functions that rebuild its objects, so reading one with `pickle.load` runs whatever its author chose;
EDM's files even carry their networks' source, to be executed. Here names are looked up in a short table of this
module's own functions, which make arrays and nothing else. Classes that checkpoints mention but nobody needs become
`Inert` objects and are never imported. Any other name is refused.

Tensors stay where they are in the file until `Tensor.array` is called, so an optimiser's state costs no memory.
"""

import functools
import math
import operator
import pickle
from collections import OrderedDict
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch wrote before it wrote zip archives
_STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
# What training frameworks leave in a checkpoint beside the weights, and classes that are only ever an argument.
_INERT_PREFIXES = ("lightning.", "pytorch_lightning.", "omegaconf.", "torch.nn.modules.", "__torch__.")
_INERT = {"typing.Any", "collections.defaultdict", "numpy.ndarray", *_STORAGES} | {
    f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")
}


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
    """Stands for an object of a class that is not imported: the class's name and the state that the pickle gave."""

    name = ""
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any): ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


def load(file: BufferedIOBase, what: str, storage: Callable[[np.dtype, str, int], Storage] | None = None) -> Any:
    """The next pickle of a stream: plain Python objects, NumPy arrays, `Tensor` and `Inert`.

    Args:
        file: the stream.
        what: what is read, for messages.
        storage: storage(dtype, key, count) finds the numbers that a torch file keeps outside of its pickle.

    Returns:
        The object.

    Raises:
        ValueError: if the stream is cut short or damaged, or names anything that rebuilding arrays does not need. The
            message says what; nothing of it has been imported or called.
    """
    try:
        return _Unpickler(file, what, storage).load()
    except Refused:
        raise
    except Exception as error:  # a damaged stream may ask for anything, and so raise nearly anything
        raise ValueError(f"{what}: cut short or damaged ({type(error).__name__}: {error})") from error


def load_stream(file: BufferedIOBase, what: str) -> Any:
    """A whole file of pickles: what torch wrote before version 1.6, or one plain pickle.

    torch's stream holds a magic number, a version, facts on the machine, the object, the keys of its storages, and then
    each storage as a count of 8 bytes and its numbers.

    Args, Returns, Raises: see `load`; the file must stay open while tensors are read from it.
    """
    first = load(file, what)
    if not isinstance(first, int) or first != _LEGACY_MAGIC:
        return first
    places: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def read(key: str) -> bytes:
        file.seek(places[key])
        return file.read(sizes[key])

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        if count < 0:
            raise ValueError(f"a storage of {count} numbers")
        sizes[key] = dtype.itemsize * count
        return Storage(dtype, functools.cache(functools.partial(read, key)))

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
        raise ValueError(f"{what}: cut short or damaged ({end} bytes where {place} belong)")
    return content


# The reader that is written in Python; the other one allocates memory as a damaged file says, before it reads on.
_OPCODES = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}


class Refused(ValueError):
    """A pickle names something that no file of weights needs."""


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    dispatch = _OPCODES

    def __init__(self, file: BufferedIOBase, what: str, storage: Callable[[np.dtype, str, int], Storage] | None):
        super().__init__(file, encoding="latin1")
        self._what, self._storage = what, storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # Python 2's name is in old protocols
        if full in _REBUILD:
            return _REBUILD[full]
        if full in _INERT or full.startswith(_INERT_PREFIXES):
            return _inert(full)
        raise Refused(f"{self._what} names {full}, which no file of weights needs; refused, and nothing was run")

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view) or self._storage is None:
            raise ValueError(f"unknown reference {pid!r}")
        return self._storage(_STORAGES[storage.name], key, count)


class _DType:
    """A NumPy dtype of numbers under construction: the byte order comes as state."""

    def __init__(self, code: str, *flags: Any):
        self.value = np.dtype(code)
        if self.value.kind not in "biufc":
            raise ValueError(f"arrays of dtype {code!r} are not read")

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array under construction; NumPy's own state may hold objects."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, data = state
        super().__setstate__((version, shape, dtype.value, fortran, bytes(data)))


class _Function:
    """A function of this module that a pickle can call, and not change: setting its state is refused."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


@functools.cache
def _inert(name: str) -> type[Inert]:
    return type("Inert", (Inert,), {"name": name})


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor on {storage!r}")
    index = operator.index
    return Tensor(storage, index(offset), tuple(map(index, shape)), tuple(map(index, strides)))


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _storage_of_bytes(data: bytes) -> Any:
    return load_stream(BytesIO(data), "a tensor")


def _persistent(meta: dict) -> Inert:
    module = _inert(str(meta["class_name"]))()
    module.state = meta["state"]
    return module


def _array(*_: Any) -> _Array:
    return _Array((0,))


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.value)[0]


def _list(values: list) -> list:
    return list(values)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_FUNCTIONS = {
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage_of_bytes,
    "torch.jit._pickle.build_intlist": _list,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
_REBUILD = {name: _Function(function) for name, function in _FUNCTIONS.items()} | {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "dnnlib.util.EasyDict": dict,
    "numpy.dtype": _DType,
    "torch.Size": tuple,
}
