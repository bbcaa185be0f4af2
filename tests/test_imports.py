"""What an import costs: nothing that only some need is loaded before it is asked for."""

import ast
import json
import subprocess
import sys
from pathlib import Path

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


def test_tables_run_without_jax_and_other_names_say_that_they_need_it(tmp_path):
    script = """
import sys
sys.modules.update(jax=None, jaxtyping=None, optax=None)
import ld3_jax
from ld3_jax import interop
print(interop.solve(interop.read(sys.argv[1]), lambda x, t: 0.0 * x, 1.0))
for name in ("fit", "batches"):
    try:
        getattr(ld3_jax, name)
    except ImportError as error:
        print(error)
"""
    rows = {"correct_x": [1.0], "correct_base": [0.0], "correct_history": [[0.0]]}
    rows |= {"t": [1.0], "alpha": [0.6], "sigma": [0.8], "predict_base": [0.5], "predict_history": [[0.1]]}
    known = {"prediction": "noise", "process": None, "train_steps": None, "prior_scale": 1.0}
    (tmp_path / "schedule.json").write_text(
        json.dumps({"table": {**known, **rows, "grid_alpha": [0.6, 1.0], "grid_sigma": [0.8, 0.0]}})
    )
    command = [sys.executable, "-c", script, str(tmp_path / "schedule.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "0.5",
        "ld3_jax.fit needs jax: pip install ld3-jax",
        "ld3_jax.batches needs jax: pip install ld3-jax",
    ], done.stderr[-3000:]


@pytest.mark.parametrize("name", [*ld3_jax.__all__, *ld3_jax._ON_DEMAND, "__version__"])
def test_public_names_are_there(name):
    assert getattr(ld3_jax, name) is not None


def test_names_are_completed():
    assert {*ld3_jax.__all__, "interop", "metrics", "networks", "poses", "pretrained"} <= set(dir(ld3_jax))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ld3_jax' has no attribute 'magic'"):
        _ = ld3_jax.magic


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        ("networks", ("pretrained", "poses", "interop", "learning")),
        ("interop", ("pretrained", "poses")),
        ("learning", ("pretrained", "poses", "interop", "networks")),
        ("solvers", ("pretrained", "poses", "interop", "networks", "learning")),
    ],
)
def test_nothing_imports_what_stands_above_it(folder, above):
    for path in Path("ld3_jax", folder).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        froms = [
            (node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        imported = {*plain, *(f"{module}.{name}" for module, name in froms)}
        assert not [name for name in imported if name.startswith(tuple(f"ld3_jax.{one}" for one in above))], path
