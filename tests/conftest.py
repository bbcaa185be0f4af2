"""Settings of every test: types and shapes are checked at run time, rank promotion raises, float64 is a fixture."""

import itertools
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile much and compute little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("ld3_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

_MAPS = Path("/proc/self/maps")
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def compiled_programs_go():
    """Before a process holds more of them than it can map into memory, 65,530 pieces on Linux, and is aborted."""
    yield
    if next(_tests) % 3 == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def float64():
    """Run the test in double precision."""
    with jax.enable_x64(True):
        yield
