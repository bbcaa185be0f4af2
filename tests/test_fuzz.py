"""Mutated files: every reader gives a value or its one error, runs nothing, and needs little time and memory.

python -m pytest tests/test_fuzz.py --mutations=10000
"""

import io
import json
import pickle
import resource
import sys
import time
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from experiments import cells, tables
from ld3_jax import interop, learning, metrics, recording
from ld3_jax.interop import imported_files
from ld3_jax.networks import files, pickles, text
from ld3_jax.schedules import VELinear
from ld3_jax.teacher import Pairs

GOLDEN = Path(__file__).parent / "golden"
TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b.weight": torch.ones(5, dtype=torch.float16)}
SECONDS, BYTES = 5.0, 500e6
SHAPE = jax.ShapeDtypeStruct((4, 4, 3), np.float32)
PAIR = {"latent": torch.randn(2, 3, 4, 4)[1], "img": torch.randn(3, 4, 4).double(), "c": None, "uc": None}


def saved(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ckpt", content)
    return buffer.getvalue()


def weights(path):
    return {name: array.copy() for name, array in files.read(path).state.items()}


def unpickled(path):
    return pickles.load(io.BytesIO(path.read_bytes()), str(path))


def scripted():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises against TorchScript, in which Inception's weights come
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), buffer)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


ROWS = {name: [0.5, 0.25] for name in ("t", "correct_x", "correct_base", "predict_base")}
HISTORY = {name: [[1.0, 0.0], [0.5, 0.5]] for name in ("correct_history", "predict_history")}
OF_TABLE = {"prediction": "data", "process": "flow", "train_steps": None, "prior_scale": 1.0}
GRID = {"grid_alpha": [0.1, 0.5, 0.9], "grid_sigma": [0.9, 0.5, 0.1]}
TABLE = {**OF_TABLE, **ROWS, **HISTORY, **GRID, "alpha": [0.1, 0.5], "sigma": [0.9, 0.5]}
STREAM = saved({"state_dict": TENSORS, "epoch": 3}, _use_new_zipfile_serialization=False)
STEP = {"step": 1, "loss": 1.0, "valid_loss": 1.0, "best_loss": 1.0, "grad_norm": 0.1, "moved": 0.0}
CELL = GOLDEN / "hsc32-dpmpp-5-0.json"  # of a sweep
READERS = {  # name of a file -> what it holds, and what reads it
    "new.ckpt": (saved({"state_dict": TENSORS, "epoch": 3}), weights),
    "old.ckpt": (STREAM, weights),
    "plain.pkl": (pickle.dumps({"a": np.ones(3), "b": [1, 2], "c": {"d"}}, 4), unpickled),
    "around.zip": (zipped(STREAM), weights),
    "script.pt": (scripted(), weights),
    "model.safetensors": (safetensors.numpy.save({"a": np.ones((3, 4)), "b": np.ones(5, np.int8)}), weights),
    **{path.name: (path.read_bytes(), learning.load) for path in GOLDEN.glob("schedule_*.json")},
    "benchmark.json": (json.dumps({"rows": {"a: b": {"c": [1.0, 2.0, 3.0], "d": "e"}}}).encode(), tables.read),
    CELL.name: (CELL.read_bytes(), cells.read),
    "captions.json": (json.dumps({"annotations": [{"caption": "a cat"}] * 3}).encode(), text.read_prompts),
    "table.json": (json.dumps({"table": TABLE}).encode(), interop.read),
    "levels.txt": (b"80.0, 10, 1, 0.1, 0.002", lambda path: imported_files.read_times(str(path), VELinear(), 4)),
    "latent_000000.pt": (
        saved(PAIR),
        lambda path: imported_files.read_pairs(path, VELinear(), 1, Pairs(SHAPE, SHAPE)),
    ),
    "reference.npz": (npz(mu=np.ones(3), sigma=np.eye(3)), metrics.read_statistics),
    "metrics.jsonl": ((json.dumps(STEP) + "\n").encode() * 3, recording.read_log),
}
RUNS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class"}
RAN = []
sys.addaudithook(lambda event, arguments: RAN.append((event, arguments)) if event in RUNS else None)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, repeated or moved."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, length = rng.integers(len(data) + 1), int(rng.geometric(0.1))
        part = data[at : at + length]
        kind = rng.integers(5)
        if kind == 0:
            data[at : at + length] = rng.integers(0, 256, len(part), np.uint8).tobytes()
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = part * int(rng.integers(1, 4))
        elif kind == 3:
            to = rng.integers(len(data) + 1)
            data[to : to + length] = part
        elif at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_gives_a_value_or_its_documented_error(name, request, tmp_path):
    content, read = READERS[name]
    path, rng = tmp_path / name, np.random.default_rng(list(name.encode()))
    path.write_bytes(content)
    read(path)
    most, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + BYTES, 0
    for _ in range(request.config.getoption("mutations")):
        path.write_bytes(mutation := mutated(content, rng))
        RAN.clear()
        begun = time.monotonic()
        try:
            read(path)
        except ValueError as error:
            refused += 1
            if str(path) not in str(error):
                raise AssertionError(f"{mutation} is not named") from error
        assert not RAN, mutation
        assert time.monotonic() - begun < SECONDS, mutation
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < most, mutation
    assert refused
