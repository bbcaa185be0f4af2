"""Readers of published weights: the same arrays as PyTorch reads, no code run, and damage named."""

import io
import json
import os
import pickle
import sys
import tracemalloc
import types
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from ld3_jax.networks import files, lazy, pickles, weights
from ld3_jax.networks.files import Checkpoint
from ld3_jax.networks.lazy import Lazy

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors() -> dict[str, torch.Tensor]:
    """Each dtype, and each way in which a tensor may lie in its storage."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    return {
        **{f"as.{dtype}": (10 * x).to(getattr(torch, dtype)) for dtype in DTYPES},
        "transposed": x.transpose(0, 2),
        "a slice of the same storage": x[1:, ::2],
        "expanded": x[:1].expand(3, -1, -1),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(x),
    }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def assert_same(state, expected) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == as_numpy(tensor).dtype
        np.testing.assert_array_equal(state[name], as_numpy(tensor), err_msg=name)


@pytest.fixture
def edm(monkeypatch):
    """EDM's way of pickling a module: its source and its constructor's arguments go along, to be run by the reader."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the file's code was run")

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, persistence.__name__, persistence)

    class Persistent(torch.nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self._init_args, self._init_kwargs = args, kwargs

        def __reduce__(self):
            source = "raise AssertionError('the source of a file was run')"
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": type(self).__name__}
            return persistence._reconstruct_persistent_obj, ({**meta, "state": self.__dict__},), None

    class Linear(Persistent):
        def __init__(self, *args):
            super().__init__(*args)
            self.weight = torch.nn.Parameter(torch.randn(3, 2))
            self.register_parameter("bias", None)
            self.register_buffer("resample_filter", torch.ones(1, 1, 2, 2))
            self.register_buffer("scratch", torch.zeros(5), persistent=False)

    class EDMPrecond(Persistent):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.model = torch.nn.ModuleDict({"enc": torch.nn.ModuleDict({"16x16_conv": Linear(1, 2)})})
            self.sigma_data = 0.5

    return EDMPrecond


def save_stream(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_stream])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": np.float64(3)}])
def test_files_of_torch_hold_what_torch_reads(save, wrap, tmp_path):
    save(wrap(tensors()), tmp_path / "model.ckpt")
    kind, state, config = files.read(tmp_path / "model.ckpt")
    assert (kind, config) == ("torch", {})
    assert_same(state, tensors())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "wrap", [lambda network: {"ema": network, "loss_fn": torch.nn.Identity()}, lambda network: network]
)
def test_a_pickle_of_edm_holds_the_state_dict_and_the_constructor_arguments(edm, wrap, protocol, tmp_path):
    network = edm(img_resolution=16, channel_mult=(1, 2), model_type="SongUNet")
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps(wrap(network), protocol))
    kind, state, config = files.read(tmp_path / "edm.pkl")
    assert kind == "edm"
    assert config == {
        "class_name": "EDMPrecond",
        "img_resolution": 16,
        "channel_mult": [1, 2],
        "model_type": "SongUNet",
    }
    assert list(state) == ["model.enc.16x16_conv.weight", "model.enc.16x16_conv.resample_filter"]
    assert_same(state, network.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network._init_kwargs.update(device=torch.nn.Identity()), "plain arguments"),
        (lambda network: network.__dict__.pop("_init_kwargs"), "plain arguments"),
        (lambda network: setattr(network, "_init_args", (16,)), r"constructed with \(16,\)"),
    ],
)
def test_a_network_whose_arguments_are_not_known_is_refused(edm, change, message, tmp_path):
    network = edm()
    change(network)
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": network}))
    with pytest.raises(ValueError, match=rf"edm\.pkl: EDMPrecond.*{message}"):
        files.read(tmp_path / "edm.pkl")


class Hostile:
    """An object that is rebuilt by a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def in_tensor(hostile):
    return Hostile(torch.storage._load_from_bytes, pickle.dumps(hostile))


@pytest.mark.parametrize(
    "save", [torch.save, save_stream, lambda content, path: path.write_bytes(pickle.dumps(content))]
)
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "open({!r}, 'w')", "builtins.eval"),
        (getattr, "{}", "builtins.getattr"),
        (types.SimpleNamespace, "{}", "types.SimpleNamespace"),
        (np.load, "{}", "numpy.load"),
    ],
)
@pytest.mark.parametrize("place", [lambda hostile: hostile, in_tensor])
def test_what_would_run_code_is_refused_by_name_and_not_run(save, function, argument, name, place, tmp_path):
    marker = tmp_path / "ran"
    call = (argument.format(str(marker)), "x") if function is getattr else (argument.format(str(marker)),)
    if function is types.SimpleNamespace:
        call = ()
    save({"weight": torch.zeros(3), "callbacks": place(Hostile(function, *call))}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=rf"names {name}, .*refused, and nothing was run"):
        files.read(tmp_path / "model.ckpt")
    assert not marker.exists()


def test_classes_of_training_frameworks_are_neither_imported_nor_called(monkeypatch, tmp_path):
    framework = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint(dict):
        def __setstate__(self, state):
            raise AssertionError("called")

        def __getstate__(self):
            return {"best": 1}

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = framework.__name__, "ModelCheckpoint"
    framework.ModelCheckpoint = ModelCheckpoint
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, framework.__name__, framework)
    content = {"callbacks": {ModelCheckpoint: ModelCheckpoint(a=1)}, "state_dict": {"w": torch.ones(2)}}
    torch.save(content, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, framework.__name__)
    np.testing.assert_array_equal(files.read(tmp_path / "model.ckpt").state["w"], np.ones(2))


def test_numpy_arrays_are_read_and_arrays_of_objects_are_not():
    for array in (np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">i2"), np.array([True])):
        for protocol in (2, 4):
            read = pickles.load(io.BytesIO(pickle.dumps({"a": array}, protocol)), "file")["a"]
            np.testing.assert_array_equal(np.asarray(read), array)
            assert np.asarray(read).dtype == array.dtype.newbyteorder("=")
    with pytest.raises(ValueError, match="arrays of dtype 'O8' are not read"):
        pickles.load(io.BytesIO(pickle.dumps(np.array([None]), 4)), "file")


@pytest.mark.parametrize("save", [torch.save, save_stream, "edm", "safetensors"])
def test_a_file_cut_short_anywhere_is_refused(save, edm, tmp_path):
    path = tmp_path / "weights"
    if save == "edm":
        path.write_bytes(pickle.dumps({"ema": edm()}))
    elif save == "safetensors":
        files.write(path, Checkpoint("torch", {"w": np.ones((30, 40), np.float32)}, {}), {})
    else:
        save({"w": torch.ones(30, 40)}, path)
    content = path.read_bytes()
    files.read(path)
    for length in [0, 1, 5, *range(20, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights: (cut short or damaged|neither)"):
            files.read(path)


def test_a_damaged_storage_is_refused_when_it_is_asked_for(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.ones(30, 40), "whole": torch.zeros(2)}, path)
    content = path.read_bytes()
    place = content.index(np.float32(1).tobytes() * 10)
    path.write_bytes(content[:place] + b"\7" + content[place + 1 :])
    state = files.read(path).state
    assert not state["whole"].any()
    with pytest.raises(ValueError, match=r"model\.ckpt: cut short or damaged \(BadZipFile: Bad CRC-32"):
        state["w"]


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
    storage = pickles.Storage(np.dtype("<f4"), lambda: bytes(40))
    assert pickles.Tensor(storage, 4, (2, 3), (3, 1)).array().shape == (2, 3)
    for offset, shape, strides in ((5, (2, 3), (3, 1)), (0, (2, 3), (-3, 1)), (0, (11,), (1,)), (-1, (2,), (1,))):
        with pytest.raises(ValueError, match="does not fit its 40 bytes"):
            pickles.Tensor(storage, offset, shape, strides).array()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<html>not found</html>",
            "neither a pickle of EDM's, nor of torch.save, nor safetensors; begins with b'<html>",
        ),
        (pickle.dumps([1]), "holds a list, not arrays by name"),
        (pickle.dumps({"epoch": 1}), r"holds no arrays by name, only \['epoch'\]"),
        (
            pickle.dumps(torch.nn.Identity()),
            r"torch\.nn\.modules\.linear\.Identity without its constructor's plain arguments",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(content, message, tmp_path):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights: {message}"):
        files.read(tmp_path / "weights")


def test_an_archive_around_a_checkpoint_is_opened(tmp_path):
    torch.save({"state_dict": tensors()}, tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "lsun.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "model.ckpt", "model.ckpt")
        archive.writestr("config.yaml", "model: x")
    assert_same(files.read(tmp_path / "lsun.zip").state, tensors())
    with zipfile.ZipFile(tmp_path / "lsun.zip", "a") as archive:
        archive.write(tmp_path / "model.ckpt", "other.ckpt")
    with pytest.raises(ValueError, match=r"lsun\.zip: an archive with 2 files of torch\.save"):
        files.read(tmp_path / "lsun.zip")


def test_what_is_written_is_read_back(tmp_path):
    state = {name: as_numpy(tensor) for name, tensor in tensors().items()}
    path = tmp_path / "new" / "out.safetensors"
    files.write(path, Checkpoint("edm", state, {"channel_mult": [1, 2]}), {"source": "edm.pkl"})
    checkpoint = files.read(path)
    assert (checkpoint.kind, checkpoint.config) == ("edm", {"channel_mult": [1, 2]})
    assert_same(checkpoint.state, tensors())
    assert [file.name for file in path.parent.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.safetensors.index.json"])
def test_a_large_file_is_never_in_memory_as_a_whole(name, tmp_path):
    state = {f"layer{i}.weight": np.full((512, 512), i, np.float32) for i in range(20)}  # a megabyte each
    if name == "model.ckpt":
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, tmp_path / name)
    else:
        files.write(tmp_path / "model.safetensors", Checkpoint("torch", state, {}), {})
        weight_map = dict.fromkeys(state, "model.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shapes = {f"layer{i}": {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)} for i in range(20)}
    weights.fill(shapes, state, name)  # compiles what it needs
    tracemalloc.start()
    params = weights.fill(shapes, files.read(tmp_path / name).state, name)
    peak = tracemalloc.get_traced_memory()[1]  # without what is on the device
    tracemalloc.stop()
    assert np.asarray(params["layer7"]["kernel"])[3, 4] == 7
    assert peak < 6e6


def test_arrays_get_other_names_and_join_others_unread():
    def unreadable():
        raise AssertionError("read")

    # The checks of types look at the first array.

    state = Lazy({"b": lambda: np.ones(2), "a": unreadable})
    found = lazy.joined(lazy.renamed(state, {"y": "b", "x": "a"}), {"x": np.zeros(3), "z": np.zeros(4)})
    assert list(found) == ["y", "x", "z"]
    assert ("a" in state, "a" in found, len(found)) == (True, False, 3)
    assert {name: len(array) for name, array in found.items()} == {"x": 3, "y": 2, "z": 4}


def test_shards_are_joined_and_a_missing_array_is_named(tmp_path):
    for i in range(2):
        safetensors.numpy.save_file({f"w{i}": np.full(3, i)}, tmp_path / f"{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": "0.safetensors", "w1": "1.safetensors"}}))
    assert {name: array[0] for name, array in files.read(index).state.items()} == {"w0": 0, "w1": 1}
    index.write_text(json.dumps({"weight_map": {"w0": "0.safetensors", "w2": "1.safetensors"}}))
    with pytest.raises(ValueError, match="its files lack w2"):
        files.read(index)


STORAGE = pickles.Storage(np.dtype("<f4"), lambda: bytes(40))


@pytest.mark.parametrize(
    "tensor",
    [
        pickles.Tensor(STORAGE, 0, (10**15,), (0,)),
        pickles.Tensor(STORAGE, 0, (10**9, 10**9), (0, 0)),
        pickles.Tensor(STORAGE, -4, (2,), (1,)),
        pickles.Tensor(STORAGE, 10**30, (2,), (1,)),
        pickles.Tensor(STORAGE, 4, (2,), (-1,)),
        pickles.Tensor(STORAGE, 0, (-2,), (1,)),
        pickles.Tensor(STORAGE, 0, (2, 2), (10**30, 1)),
    ],
    ids=lambda tensor: f"{tensor.offset}, {tensor.shape}, {tensor.strides}",
)
def test_a_tensor_larger_than_its_storage_or_before_it_is_refused(tensor):
    with pytest.raises(ValueError, match="does not fit its 40 bytes"):
        tensor.array()


REACHABLE = ["torch._utils _rebuild_tensor", "numpy dtype", "collections OrderedDict", "torch Size", "omegaconf Any"]


@pytest.mark.parametrize("state", [b"}S'x'\nK\x01s", b"N}S'name'\nK\x01s\x86"], ids=["dict", "slots"])
@pytest.mark.parametrize("name", REACHABLE)
def test_a_pickle_sets_no_attributes_of_what_it_can_reach(name, state):
    module, name = name.split()
    with pytest.raises(ValueError, match="a file: cut short or damaged"):
        pickles.load(io.BytesIO(f"\x80\x02c{module}\n{name}\n".encode("latin1") + state + b"b."), "a file")


def of_safetensors(dtype, config="{}"):
    header = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 4 if dtype == "F4" else 8]}}
    text = json.dumps(header | {"__metadata__": {"config": config}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(header["a"]["data_offsets"][1])


def of_zip(name, content, method=zipfile.ZIP_STORED, encrypted=False, kind=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    data = bytearray(buffer.getvalue())
    for at, flags, of_method in ((data.index(b"PK\3\4"), 6, 8), (data.index(b"PK\1\2"), 8, 10)):
        data[at + flags] |= encrypted
        data[at + of_method] = data[at + of_method] if kind is None else kind
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.safetensors", of_safetensors("F8_E4M3"), "a is of a dtype that is not read"),
        ("m.safetensors", of_safetensors("F4"), "a is of a dtype that is not read"),
        ("m.safetensors", of_safetensors("U8", "{"), "cut short or damaged"),
        ("m.safetensors", of_safetensors("U8", "[]"), r"its config must be an object, got \[\]"),
        ("m.ckpt", pickle.dumps({"state_dict": 5}), "its state_dict is a int, not arrays by name"),
        ("m.ckpt", pickle.dumps({"state_dict": {3: 4}}), "holds no arrays by name"),
        ("m.ckpt", b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.", "cut short or damaged"),
        ("m.ckpt", b"\x80\x02K\x01r\xff\xff\xff\x7f}.", "holds no arrays by name"),
        ("m.zip", of_zip("m.ckpt", b"x", encrypted=True), "cut short or damaged .RuntimeError: .*encrypted"),
        ("m.zip", of_zip("m.ckpt", b"x", kind=97), "cut short or damaged .NotImplementedError"),
        ("m.zip", of_zip("m.ckpt", bytes(10**8), zipfile.ZIP_DEFLATED), "expands to more than 100 times its size"),
        ("m.safetensors.index.json", b"[]", "no index of files"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": 5}}', "no index of files"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "none"}}', "cut short or damaged .FileNotFoundError"),
        ("m.safetensors.index.json", b"\xff", "not valid JSON"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_error_that_names_it(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            dict(files.read(path).state)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
