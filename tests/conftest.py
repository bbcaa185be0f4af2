"""Settings of every test: types and shapes are checked at run time, rank promotion raises, float64 is a fixture."""

import ctypes
import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile much and compute little: cheap compilation, and no program twice by the processes of a run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10."),  # an unknown flag ends the process
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="ld3_jax_tests_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import chex
import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("ld3_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

_STATM = Path("/proc/self/statm")
_LARGE = 1.8e9  # bytes; with PyTorch, diffusers and transformers a process has 1.2e9


def pytest_collection_finish():
    """What was imported stays, and tracing makes many objects and little garbage: collecting took 7 % of all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--mutations", type=int, default=30, help="mutations of each file that test_fuzz tries")


@pytest.fixture(autouse=True, scope="module")
def memory_goes_back():
    """A module's compiled programs, which no other needs, are let go."""
    yield
    _let_go()


@pytest.fixture(autouse=True)
def memory_stays_bounded():
    """Within a module they are let go where the process has grown large."""
    yield
    if _STATM.exists() and int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _LARGE:
        _let_go()


def _let_go():
    jax.clear_caches()
    chex.clear_trace_counter()  # what is traced again was let go
    gc.collect()
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # freed memory is returned to the system


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch has one thread: tiny networks are slower on several, above all beside other tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    """Run the test in double precision."""
    with jax.enable_x64(True):
        yield
