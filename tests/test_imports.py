"""What an import costs: nothing that only some need is loaded before it is asked for."""

import json
import subprocess
import sys

import pytest

import ld3_jax

SCRIPT = """
import json, sys
import ld3_jax
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
ld3_jax.batches, ld3_jax.networks, ld3_jax.poses
"""


def test_the_package_loads_without_what_only_some_need_and_gives_it_by_name():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = set(json.loads(done.stdout))
    assert "jax" in loaded
    heavy = {
        "orbax",
        "matplotlib",
        "flax",
        "PIL",
        "tensorstore",
        "ml_collections",
        "absl.app",
        "torch",
        "diffusers",
        "tqdm",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("name", [*ld3_jax.__all__, *ld3_jax._ON_DEMAND, "__version__"])
def test_public_names_are_there(name):
    assert getattr(ld3_jax, name) is not None


def test_names_are_completed():
    assert {*ld3_jax.__all__, "interop", "metrics", "networks", "poses", "pretrained"} <= set(dir(ld3_jax))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ld3_jax' has no attribute 'magic'"):
        _ = ld3_jax.magic
