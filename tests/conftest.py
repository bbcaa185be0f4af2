"""Settings of every test: types and shapes are checked at run time, rank promotion raises, float64 is a fixture."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile much and compute little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("ld3_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_go():
    """Thousands of compiled programs in one process exhaust its memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64():
    """Run the test in double precision."""
    with jax.enable_x64(True):
        yield
