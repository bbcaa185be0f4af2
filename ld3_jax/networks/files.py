"""Files of published weights as arrays by name. No code from a file is run, and PyTorch is not needed.

    .pkl            EDM's and StyleGAN3's pickles of a whole network
    .ckpt .pt .bin  torch.save, of today (a zip archive) and of before 2020 (a stream); the arrays of a TorchScript
    .zip            an archive around one of the latter
    .safetensors    one file, or the .safetensors.index.json of several; what `write` wrote

What a file holds is told by its content, not by its name; only the index of several files goes by its name. Arrays of
safetensors and of today's torch.save stay in the file until they are asked for.
"""

import functools
import hashlib
import importlib.metadata
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ld3_jax.disk import read_json, replacing
from ld3_jax.networks import lazy, pickles
from ld3_jax.networks.lazy import Lazy
from ld3_jax.networks.pickles import Inert, Storage, Tensor

_ZIP_MAGIC, _PICKLE_MAGIC = b"PK", b"\x80"
_SAFETENSORS_MAGIC = b"\0\0\0\0{"  # after four bytes: the upper half of a header's length, and the header, in JSON
_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".pkl", ".safetensors", ".safetensors.index.json", *_TORCH_SUFFIXES)
_EXPANSION, _CHUNK = 100, 10_000  # the most that an archive may hold for each of its bytes, beyond small files
_SHOWN = 5


class Checkpoint(NamedTuple):
    """The content of a file of weights.

    Attributes:
        kind: "edm", "torch", "torchscript" or "safetensors"; a file that `write` wrote keeps the kind of its source.
        state: the arrays, by PyTorch's names; perhaps `Lazy`.
        config: what the network was constructed with, where the file says so: for EDM `class_name` and the keyword
            arguments of that class.
    """

    kind: str
    state: Mapping[str, np.ndarray]
    config: dict[str, Any]


def read(path: Path) -> Checkpoint:
    """Read a file of weights.

    Args:
        path: a file of one of the kinds above.

    Returns:
        Its arrays, in the dtypes that it holds (bfloat16 through ml_dtypes), and its constructor arguments. An array
        that is damaged where the file is not cut short raises its ValueError when it is asked for.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short or damaged, of no kind above, holds no arrays by name, or would run code.
    """
    path = Path(path)
    with path.open("rb") as file, _naming_damage(str(path)):
        if path.name.endswith(".safetensors.index.json"):
            return _read_shards(path)
        start = file.read(16)
        file.seek(0)
        if start.startswith(_SAFETENSORS_MAGIC, 4):
            return _read_safetensors(path)
        if start.startswith(_ZIP_MAGIC):
            return _read_zip(path)
        if start.startswith(_PICKLE_MAGIC):
            return _in_memory(_to_checkpoint(pickles.load_stream(file, str(path)), str(path)))
    raise ValueError(f"{path}: neither a pickle of EDM's, nor of torch.save, nor safetensors; begins with {start!r}")


@contextmanager
def _naming_damage(what: str) -> Iterator[None]:
    """A damaged file may raise nearly anything: it ends in a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, pickles.Refused) or (isinstance(error, ValueError) and str(error).startswith(what)):
            raise
        raise ValueError(f"{what}: cut short or damaged ({type(error).__name__}: {error})") from error


def write(path: Path, checkpoint: Checkpoint, origin: Mapping[str, str]) -> None:
    """Write arrays and constructor arguments as a safetensors file that `read` gives back unchanged.

    The file is whole at any moment, the old one or the new one, even if the process is killed.

    Args:
        path: the file.
        checkpoint: what to write.
        origin: more metadata, such as the name and the SHA-256 of the file that the arrays are from.

    Raises:
        OSError: if the disk does not take it.
    """
    metadata = {**origin, "kind": checkpoint.kind, "config": json.dumps(checkpoint.config)}
    # The library stores memory as it lies, whatever the strides.
    state = {name: np.asarray(array, order="C") for name, array in checkpoint.state.items()}
    with replacing(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            safetensors.numpy.save_file(state, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(None, str(error)) from error
        temporary.chmod(mode)  # the library lets the owner alone read its files


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(name: str, package: str, command: str) -> Path:
    """Where an installed package keeps one of its files; the package itself is not imported.

    Args:
        name: of the file.
        package: its name on PyPI.
        command: what installs it, for the message.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    try:
        found = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        found = []
    for file in found:
        if file.name == name and Path(file.locate()).is_file():
            return Path(file.locate())
    raise FileNotFoundError(f"{name} not found: the weights come with a package: {command}")


def _read_safetensors(path: Path) -> Checkpoint:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        state = Lazy({name: functools.partial(_safetensor, path, name) for name in file.keys()})  # noqa: SIM118
    config = json.loads(metadata.get("config", "{}"))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: its config must be an object, got {config!r:.80}")
    return Checkpoint(metadata.get("kind", "safetensors"), state, config)


def _safetensor(path: Path, name: str) -> np.ndarray:
    # Opened for each array: what has been read of an open file stays mapped into memory.
    with safetensors.safe_open(path, framework="numpy") as file:
        try:
            return file.get_tensor(name)
        except (AttributeError, TypeError) as error:  # NumPy lacks the types of eight and four bits
            raise ValueError(f"{path}: {name} is of a dtype that is not read ({error})") from error


def _read_shards(path: Path) -> Checkpoint:
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path}: no index of files, which has the file of each array under weight_map")
    shards = [_read_safetensors(path.parent / name) for name in sorted(set(names.values()))]
    state = lazy.joined(*(shard.state for shard in shards))
    if missing := sorted(names.keys() - state.keys()):
        raise ValueError(f"{path}: its files lack {', '.join(missing)}")
    return Checkpoint("safetensors", state, {})


def _read_zip(path: Path) -> Checkpoint:
    archive = zipfile.ZipFile(path)
    if any(entry.file_size > _EXPANSION * max(entry.compress_size, _CHUNK) for entry in archive.infolist()):
        raise ValueError(f"{path}: expands to more than {_EXPANSION} times its size, which weights never do")
    names = [PurePosixPath(name) for name in archive.namelist()]
    if folders := [name.parent for name in names if name.name == "data.pkl"]:
        return _read_torch_zip(archive, folders[0], str(path))
    inner = [name for name in names if name.suffix in _TORCH_SUFFIXES]
    if len(inner) != 1:
        raise ValueError(f"{path}: an archive with {len(inner)} files of torch.save; one is expected")
    with archive, tempfile.TemporaryDirectory() as folder:
        return _in_memory(read(Path(archive.extract(str(inner[0]), folder))))


def _read_torch_zip(archive: zipfile.ZipFile, folder: PurePosixPath, what: str) -> Checkpoint:
    # The archive is open as long as an array may be asked for; tensors that share a storage mostly lie side by side.
    @functools.lru_cache(maxsize=1)
    def stored(key: str) -> bytes:
        return archive.read(str(folder / "data" / key))

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        return Storage(dtype, functools.partial(stored, key))

    content = pickles.load(BytesIO(archive.read(str(folder / "data.pkl"))), what, storage)
    return _to_checkpoint(content, what)


def _to_checkpoint(content: Any, what: str) -> Checkpoint:
    """From what a pickle held: EDM's `{"ema": network}`, Lightning's `{"state_dict": arrays}`, or one of them alone."""
    if isinstance(content, Inert) and content.name.startswith("__torch__."):
        return Checkpoint("torchscript", Lazy(_readers(dict(_script_tensors(content)), what)), {})
    content = {"ema": content} if isinstance(content, Inert) else content
    if not isinstance(content, dict):
        raise ValueError(f"{what}: holds a {type(content).__name__}, not arrays by name")
    kind, config, tensors = "torch", {}, content.get("state_dict", content)
    if isinstance(network := content.get("ema"), Inert):
        kind, config, tensors = "edm", _constructor(network, what), dict(_module_tensors(network))
    if not isinstance(tensors, dict):
        raise ValueError(f"{what}: its state_dict is a {type(tensors).__name__}, not arrays by name")
    found = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and isinstance(name, str)}
    if not found:
        raise ValueError(f"{what}: holds no arrays by name, only {sorted(map(str, content))[:_SHOWN]}")
    return Checkpoint(kind, Lazy(_readers(found, what)), config)


def _readers(tensors: Mapping[str, Tensor], what: str) -> dict[str, Callable[[], np.ndarray]]:
    return {name: functools.partial(_array, tensor, what) for name, tensor in tensors.items()}


def _array(tensor: Tensor, what: str) -> np.ndarray:
    with _naming_damage(what):
        return tensor.array()


def _in_memory(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint._replace(state=dict(checkpoint.state))


def _constructor(network: Inert, what: str) -> dict[str, Any]:
    try:
        arguments, keywords = network.state["_init_args"], json.loads(json.dumps(network.state["_init_kwargs"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{what}: {network.name} without its constructor's plain arguments ({error!r})") from error
    if arguments:
        raise ValueError(f"{what}: {network.name} constructed with {arguments}, whose names the file does not hold")
    return {"class_name": network.name, **keywords}


def _module_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """What `torch.nn.Module.state_dict` holds: parameters and persistent buffers, by their dotted names."""
    for name, tensor in (module.state["_parameters"] | module.state["_buffers"]).items():
        if tensor is not None and name not in module.state["_non_persistent_buffers_set"]:
            yield prefix + name, tensor
    for name, child in module.state["_modules"].items():
        yield from _module_tensors(child, f"{prefix}{name}.")


def _script_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among the attributes of a TorchScript's modules, by their dotted names."""
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Inert):
            yield from _script_tensors(value, f"{prefix}{name}.")
