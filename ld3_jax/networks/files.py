"""Files of published weights as arrays by name. No code from a file is run, and PyTorch is not needed.

    .pkl            EDM's and StyleGAN3's pickles of a whole network
    .ckpt .pt .bin  torch.save, current (a zip archive) and before 2020 (a stream); the arrays of a TorchScript
    .zip            an archive with one of the latter
    .safetensors    also what `write` wrote
    .json           the index of several files of the above kinds next to it

The content of a file decides its kind, not its name. Arrays of safetensors and of current torch.save files stay in the
file until they are needed.
"""

import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ld3_jax import extras
from ld3_jax.disk import read_json, replacing
from ld3_jax.networks import lazy, pickles
from ld3_jax.networks.lazy import Lazy, some
from ld3_jax.networks.pickles import Inert, Refused, Storage, Tensor, naming

_ZIP_MAGIC, _PICKLE_MAGIC = b"PK", b"\x80"
_SAFETENSORS_MAGIC = b"\0\0\0\0{"  # after four bytes: the upper half of a header's length, and the header, in JSON
_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".pkl", ".safetensors", ".safetensors.index.json", *_TORCH_SUFFIXES)
_BLANK = b"\xef\xbb\xbf \t\r\n"
_EXPANSION, _CHUNK = 100, 10_000  # how many times its size an archive may expand, beyond small files
_MODULES, _LONGEST, _ARGUMENTS = 20_000, 1_000, 2_000  # the most modules; characters of a name; tokens of arguments
_OTHERS = {b"<": " (a web page?)", b"version https://git-lfs": " (`git lfs pull` brings it)", b"\x1f\x8b": " (gzip)"}
_DTYPES = {"BOOL": "?", "BF16": ml_dtypes.bfloat16, "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_DTYPES |= {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
MARKER = "modelspec.prediction_type"  # of safetensors' metadata, where a file says what its network predicts


class Checkpoint(NamedTuple):
    """The content of a file of weights.

    Attributes:
        kind: "edm", "torch", "torchscript" or "safetensors"; a file that `write` wrote keeps the kind of its source.
        state: the arrays, by PyTorch's names; perhaps `Lazy`.
        config: the arguments of the network's constructor, if the file has them: for EDM `class_name` and the keyword
            arguments of that class.
    """

    kind: str
    state: Mapping[str, np.ndarray]
    config: dict[str, Any]


def read(path: Path, within: bool = False) -> Checkpoint:
    """Read a file of weights.

    Args:
        path: a file of one of the kinds above.
        within: whether an archive or index led to it; then it must not be another one, to avoid endless recursion.

    Returns:
        Its arrays, in their dtypes (bfloat16 through ml_dtypes), and its constructor arguments. An array that is
        damaged although the file is not cut short raises its ValueError when it is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short or damaged, of none of these kinds, holds no arrays by name, or would run code.
    """
    path = Path(path)
    with path.open("rb") as file, naming(str(path)):
        start = file.read(24)
        file.seek(0)
        if start.startswith(_SAFETENSORS_MAGIC, 4):
            return _read_safetensors(path)
        if start.startswith(_PICKLE_MAGIC):
            return _in_memory(_to_checkpoint(pickles.load_stream(file, str(path)), str(path)))
        if start.startswith(_ZIP_MAGIC):
            return _read_zip(path, within)
        if not within and (path.suffix == ".json" or start.lstrip(_BLANK).startswith(b"{")):
            return _read_shards(path)
        other = next((kind for magic, kind in _OTHERS.items() if start.lstrip(_BLANK).startswith(magic)), "")
        raise Refused(f"neither a pickle of EDM's, nor of torch.save, nor safetensors; begins with {start!r}{other}")


def objects(path: Path) -> Any:
    """All objects in a pickle or a torch.save file; `read` only takes arrays by name.

    Args:
        path: the file.

    Returns:
        Plain Python objects, NumPy arrays, `pickles.Tensor` and `pickles.Inert`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short or damaged, is neither kind, or would run code.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == _ZIP_MAGIC
    with naming(str(path)):
        if not zipped:
            return pickles.load_stream(BytesIO(path.read_bytes()), str(path))
        archive = _archive(path)
        folder = next((name.parent for name in map(PurePosixPath, archive.namelist()) if name.name == "data.pkl"), None)
        if folder is None:
            raise Refused("an archive without a pickle of torch.save")
        return _object_in_zip(archive, folder, str(path))


def write(path: Path, checkpoint: Checkpoint, origin: Mapping[str, str]) -> None:
    """Write arrays and constructor arguments as a safetensors file that `read` gives back unchanged.

    The write is atomic: even if the process is killed, the file is either the old one or the new one.

    Args:
        path: the file.
        checkpoint: the content to write.
        origin: more metadata, such as the name and the SHA-256 of the file that the arrays are from.

    Raises:
        OSError: if it cannot be written to the disk.
    """
    metadata = {**origin, "kind": checkpoint.kind, "config": json.dumps(checkpoint.config)}
    # The library stores memory as it is and ignores strides.
    state = {name: np.asarray(array, order="C") for name, array in checkpoint.state.items()}
    with replacing(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            safetensors.numpy.save_file(state, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(None, str(error)) from error
        temporary.chmod(mode)  # the library makes its files readable only for the owner


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(name: str, package: str) -> Path:
    """The path of a file of an installed package; the package itself is not imported.

    Args:
        name: the name of the file.
        package: one of `extras.EXTRAS`.

    Raises:
        ImportError: if the package is not installed, or its version lacks the file.
    """
    try:
        found = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        found = []
    for file in found:
        if file.name == name and Path(file.locate()).is_file():
            return Path(file.locate())
    raise extras.missing(package, name)


def _read_safetensors(path: Path) -> Checkpoint:
    with safetensors.safe_open(path, framework="numpy") as file:  # checks the header
        metadata = file.metadata() or {}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    state = Lazy({name: functools.partial(_safetensor, path, name, start, **entry) for name, entry in header.items()})
    config = json.loads(metadata.get("config", "{}"))
    if not isinstance(config, dict):
        raise Refused(f"its config must be an object, got {config!r:.80}")
    config |= {MARKER: metadata[MARKER]} if MARKER in metadata else {}
    return Checkpoint(metadata.get("kind", "safetensors"), state, config)


def _safetensor(path: Path, name: str, start: int, dtype: str, shape: list, data_offsets: list) -> np.ndarray:
    # Read, not mapped: the parts of a mapped file that were read stay in memory.
    with naming(str(path)):
        if dtype not in _DTYPES:
            raise Refused(f"{name:.100} is of a dtype that is not read ({dtype})")
        numbers = np.fromfile(path, _DTYPES[dtype], math.prod(shape), offset=start + data_offsets[0])
        return numbers.reshape(shape)


def _read_shards(path: Path) -> Checkpoint:
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    # Only files next to it: an index must not choose what else is opened.
    if not isinstance(names, dict) or any(
        not isinstance(name, str) or name != Path(name).name for name in names.values()
    ):
        raise Refused("no index of files, which has the file of each array under weight_map")
    shards = [read(path.parent / name, within=True) for name in sorted(set(names.values()))]
    state = lazy.joined(*(shard.state for shard in shards))
    if missing := names.keys() - state.keys():
        raise Refused(f"its files lack {some(missing)}")
    return Checkpoint(shards[0].kind, state, {key: value for shard in shards for key, value in shard.config.items()})


def _archive(path: Path) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(path)
    if any(entry.file_size > _EXPANSION * max(entry.compress_size, _CHUNK) for entry in archive.infolist()):
        raise Refused(f"expands to more than {_EXPANSION} times its size, which weights never do")
    return archive


def _read_zip(path: Path, within: bool) -> Checkpoint:
    archive = _archive(path)
    names = [PurePosixPath(name) for name in archive.namelist()]
    if folders := [name.parent for name in names if name.name == "data.pkl"]:
        return _to_checkpoint(_object_in_zip(archive, folders[0], str(path)), str(path))
    inner = [name for name in names if name.suffix in _TORCH_SUFFIXES]
    if len(inner) != 1 or within:
        held = some([str(name) for name in names])
        raise Refused(f"an archive with {len(inner)} files of torch.save; one is expected; it holds {held}")
    with archive, tempfile.TemporaryDirectory() as folder:
        return _in_memory(read(Path(archive.extract(str(inner[0]), folder)), within=True))


def _object_in_zip(archive: zipfile.ZipFile, folder: PurePosixPath, what: str) -> Any:
    # The archive stays open while arrays may be read; tensors that share a storage are mostly next to each other.
    @functools.lru_cache(maxsize=1)
    def stored(key: str) -> bytes:
        return archive.read(str(folder / "data" / key))

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        return Storage(dtype, functools.partial(stored, key))

    return pickles.load(BytesIO(archive.read(str(folder / "data.pkl"))), what, storage)


def _to_checkpoint(content: Any, what: str) -> Checkpoint:
    """From the content of a pickle: EDM's `{"ema": network}`, Lightning's `{"state_dict": arrays}`, or the bare one."""
    if isinstance(content, Inert) and content.name.startswith("__torch__."):
        return Checkpoint("torchscript", Lazy(_readers(_tensors(content, dict.items), what)), {})
    content = {"ema": content} if isinstance(content, Inert) else content
    if not isinstance(content, dict):
        raise Refused(f"holds a {type(content).__name__}, not arrays by name")
    kind, config, tensors = "torch", {}, content.get("state_dict", content)
    if isinstance(network := content.get("ema"), Inert) and tensors is content:
        kind, config, tensors = "edm", _constructor(network), _tensors(network, _of_module)
    if not isinstance(tensors, dict):
        held = tensors.name if isinstance(tensors, Inert) else type(tensors).__name__
        raise Refused(f"its state_dict is a {held}, not arrays by name")
    dicts = {
        name: one for name, one in content.items() if isinstance(name, str) and "ema" in name and isinstance(one, dict)
    }
    if tensors is not content and (
        more := [name for name in dicts if dicts[name] is not tensors and _holds(dicts[name])]
    ):
        raise Refused(f"holds moving averages beside state_dict ({some(more)}); keep one of them, as state_dict")
    found = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and isinstance(name, str)}
    if not found:
        raise Refused(f"holds no arrays by name, only {some([name for name in content if isinstance(name, str)])}")
    return Checkpoint(kind, Lazy(_readers(found, what)), config)


def _holds(arrays: dict) -> bool:
    return any(isinstance(one, Tensor) for one in arrays.values())


def _readers(tensors: Mapping[str, Tensor], what: str) -> dict[str, Callable[[], np.ndarray]]:
    return {name: functools.partial(_array, tensor, f"{what}: {name:.100}") for name, tensor in tensors.items()}


def _array(tensor: Tensor, what: str) -> np.ndarray:
    with naming(what):
        return tensor.array()


def _in_memory(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint._replace(state=dict(checkpoint.state))


def _constructor(network: Inert) -> dict[str, Any]:
    try:
        arguments, keywords = network.state["_init_args"], dict(network.state["_init_kwargs"])
        tensors = {name: value.array() for name, value in keywords.items() if isinstance(value, Tensor)}
        tokens = json.JSONEncoder(default=_plain).iterencode(keywords | tensors)
        keywords = json.loads("".join(itertools.islice(tokens, _ARGUMENTS)))  # cut short, where they have no end
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{network.name:.100} without its constructor's plain arguments ({error!r:.100})") from error
    if arguments:
        raise Refused(f"{network.name:.100} constructed with {len(arguments)} arguments whose names it does not hold")
    return {"class_name": network.name, **keywords}


def _plain(value: Any) -> Any:
    """NumPy numbers as Python numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{getattr(value, 'name', type(value).__name__):.100} is not plain")
    return array.tolist()


def _tensors(module: Inert, parts: Callable[[dict], Iterable[tuple[str, Any]]]) -> dict[str, Tensor]:
    """The tensors in a module and its submodules, by their dotted names."""
    found, left = {}, [("", module)]
    for _ in range(_MODULES):
        if not left:
            return found
        prefix, module = left.pop()
        for name, part in parts(module.state):
            if len(prefix + name) > _LONGEST:
                raise Refused(f"has arrays with names of more than {_LONGEST:,} characters")
            if isinstance(part, Tensor):
                found[prefix + name] = part
            elif isinstance(part, Inert):
                left.append((f"{prefix}{name}.", part))
    raise Refused(f"has more than {_MODULES:,} modules")


def _of_module(state: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """What `torch.nn.Module.state_dict` holds: parameters and persistent buffers."""
    parts = state["_parameters"] | state["_buffers"] | state["_modules"]
    return [(name, parts[name]) for name in parts if name not in state["_non_persistent_buffers_set"]]
