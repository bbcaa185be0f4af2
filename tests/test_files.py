"""Readers of published weights: the same arrays as PyTorch reads, no code run, and damage named."""

import argparse
import collections
import datetime
import decimal
import functools
import io
import json
import os
import pathlib
import pickle
import re
import sys
import time
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
        (lambda network: setattr(network, "_init_args", (16,)), "constructed with 1 arguments whose names"),
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
        (np.load, "{}", "numpy.load"),
    ],
)
@pytest.mark.parametrize("place", [lambda hostile: hostile, in_tensor])
def test_what_would_run_code_is_refused_by_name_and_not_run(save, function, argument, name, place, tmp_path):
    marker = tmp_path / "ran"
    call = (argument.format(str(marker)), "x") if function is getattr else (argument.format(str(marker)),)
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
    for array in (np.array([None]), np.array(["text"]), np.array(["2026"], "M8[D]")):
        read = pickles.load(io.BytesIO(pickle.dumps({"a": array, "b": array[0]}, 4)), "file")["a"]
        assert (read.dtype, read.shape) == (object, (0,))


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
    with pytest.raises(ValueError, match=r"model\.ckpt: w: cut short or damaged \(BadZipFile: Bad CRC-32"):
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
        (pickle.dumps({"epoch": 1}), "holds no arrays by name, only epoch"),
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


@pytest.mark.parametrize("name", ["model.safetensors.index.fp16.json", "model.bin.index.json", "index"])
def test_an_index_is_told_by_what_it_holds_and_opens_what_lies_beside_it(name, tmp_path):
    safetensors.numpy.save_file({"w0": np.zeros(3)}, tmp_path / "0.safetensors", {files.MARKER: "v"})
    torch.save({"w1": torch.ones(3)}, tmp_path / "1.bin")
    (tmp_path / name).write_text(json.dumps({"weight_map": {"w0": "0.safetensors", "w1": "1.bin"}}, indent=2))
    read = files.read(tmp_path / name)
    assert {name: array[0] for name, array in read.state.items()} == {"w0": 0, "w1": 1}
    assert read.config == {files.MARKER: "v"}
    for other, message in (("../0.safetensors", "no index of files"), (name, "neither a pickle")):
        (tmp_path / name).write_text(json.dumps({"weight_map": {"w0": other}}))
        with pytest.raises(ValueError, match=message):
            files.read(tmp_path / name)


def test_what_lies_beside_weights_is_skipped_and_runs_nothing(tmp_path):
    beside = [
        argparse.Namespace(lr=1),
        pathlib.PurePosixPath("/x"),
        torch.device("cpu"),
        torch.float16,
        collections.Counter("ab"),
        collections.deque([1]),
        datetime.datetime(2026, 1, 1),
        decimal.Decimal("0.1"),
        types.SimpleNamespace(a=1),
        functools.partial(Kind, 1),
        np.array(["text"]),
        np.str_("text"),
        np.float32(0.5),
        np.random.RandomState(0),
        frozenset({1, (2, 3)}),
        {(1, (2, 3)): 4},
        re.compile("x"),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to_sparse(),
        Hostile(Kind, "a"),
    ]
    for protocol in (2, 4, 5):
        content = {"w": torch.ones(2), "state": beside, "w of another kind": torch.zeros(2, dtype=torch.complex64)}
        torch.save(content, tmp_path / "m.ckpt", pickle_protocol=protocol)
        state = files.read(tmp_path / "m.ckpt").state
        np.testing.assert_array_equal(state["w"], np.ones(2))
        with pytest.raises(
            ValueError, match=r"w of another kind: a tensor made by torch\.ComplexFloatStorage, which is"
        ):
            state["w of another kind"]


class Kind:
    """A class of a package that the reader does not have; a call would be seen."""

    def __init__(self, name):
        self.name = name


def test_numbers_of_numpy_and_torch_among_constructor_arguments_are_pythons(edm, tmp_path):
    given = {"a": np.float32(0.5), "b": torch.tensor(3), "c": np.array([1, 2]), "d": np.int64(7), "e": torch.Size([1])}
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": edm(**given)}))
    assert files.read(tmp_path / "edm.pkl").config == {
        **{"class_name": "EDMPrecond", "a": 0.5, "b": 3, "c": [1, 2], "d": 7, "e": [1]}
    }


@pytest.mark.parametrize("name", ["many.safetensors", "many.ckpt"])
def test_time_is_in_proportion_to_the_number_of_arrays(name, tmp_path):
    arrays = {f"{i}": np.zeros(1, np.float32) for i in range(3000)}
    if name == "many.ckpt":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / name)
    else:
        safetensors.numpy.save_file(arrays, tmp_path / name)
    begun = time.process_time()
    assert len(dict(files.read(tmp_path / name).state)) == 3000
    assert time.process_time() - begun < 10


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


def pickled(*opcodes):
    """A pickle of protocol 4 by its opcodes."""
    return b"\x80\x04" + b"".join(opcodes) + b"."


def called(name, state, class_name="M", arguments=b"}"):
    """EDM's network whose state is given by opcodes."""
    keys = {"_parameters": b"}", "_buffers": b"}", "_modules": state, "_non_persistent_buffers_set": b"\x8f"}
    keys |= {"_init_args": b")", "_init_kwargs": arguments}
    state = b"}(" + b"".join(text(key) + value for key, value in keys.items()) + b"u"
    meta = b"}(" + text("class_name") + text(class_name) + text("state") + state + b"u"
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


TWICE = b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(40))  # a pair of the one before, 40 times
LISTS = b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(40))
MANY = text("x" * 10**6) + b"q\x00"
BOMBS = {
    "tuples in tuples as a key": (pickled(b"}", b")" + b"\x85" * 10**5, b"Ns"), "holds no arrays"),
    "pairs of pairs as a key": (pickled(b"})", TWICE, b"Ns"), "holds no arrays"),
    "pairs of pairs in a set": (pickled(b"\x8f()", TWICE, b"\x90"), "holds a set"),
    "frozensets in frozensets": (pickled(b"}", b"(" * 10**5, b"\x91" * 10**5, b"Ns"), "holds no arrays"),
    "a long integer as a key": (
        pickled(b"}", b"\x8b" + (10**6).to_bytes(4, "little") + b"\1" * 10**6, b"Ns"),
        "KeyError",
    ),
    "lists of lists among arguments": (
        pickled(called("M", b"}", arguments=b"}" + text("a") + LISTS + b"s")),
        "plain arg",
    ),
    "lists in lists among arguments": (
        pickled(called("M", b"}", arguments=b"}" + text("a") + b"]" + b"]" * 10**5 + b"a" * 10**5 + b"s")),
        "plain arguments",
    ),
    "modules twice in modules": (
        pickled(
            called("M", b"}")
            + b"".join(
                b"q%c" % i + called("M", b"}(" + text("a") + b"h%c" % i + text("b") + b"h%c" % i + b"u")
                for i in range(30)
            )
        ),
        "more than 20,000 modules",
    ),
    "one text encoded again and again": (
        pickled(MANY, b"c_codecs\nencode\nq\x01]", b"(" + b"h\x01h\x00N\x86R" * 10**5 + b"e"),
        "asks for more work",
    ),
    "an unknown reference": (pickled(b"]", LISTS, b"Q"), "unknown reference|cut short"),
    "a class's name of a megabyte": (pickled(called("M", b"}", class_name="x" * 10**6)), "."),
    "a path of a megabyte": (pickled(MANY, b"h\x00\x93"), "without its constructor"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_needs_little_time_and_memory_and_is_not_repeated(name, tmp_path):
    content, message = BOMBS[name]
    (tmp_path / "m.pkl").write_bytes(content)
    begun = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        files.read(tmp_path / "m.pkl")
    assert time.process_time() - begun < 5
    assert len(str(error.value)) < 1500


REACHABLE = ["torch._utils _rebuild_tensor", "numpy dtype", "collections OrderedDict", "torch Size"]


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
