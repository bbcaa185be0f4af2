"""The teacher's pairs on disk: a folder for everything that determines them, a file for each batch."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ld3_jax import programs
from ld3_jax.batches import to_host
from ld3_jax.denoisers import Model
from ld3_jax.disk import digest, read_arrays, write_arrays, write_atomically
from ld3_jax.processes import is_first, of_first
from ld3_jax.programs import Program
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

_VERSION = 4


def program(model: Model, schedule: NoiseSchedule, t: Array, inputs: PyTree, identity: str = "") -> Program | None:
    """A model's program (`programs.of_model`); None, with a warning, if only a name could tell it from others."""
    found = programs.of_model(model, schedule, t, *inputs)
    if found.unseen and not identity:
        return _not_cached(f"it uses {' and '.join(found.unseen)}, for which Teacher(identity=...) may stand")
    return found


def _not_cached(why: str) -> None:
    message = "nothing is cached, because JAX's trace does not tell the model from others: %s"
    logging.getLogger(__name__).warning(message, why)


def folder(
    cache: Path,
    model: Model,
    schedule: NoiseSchedule,
    inputs: PyTree,
    t: Array,
    solver: Solver,
    size: int,
    identity: str,
) -> tuple[Path | None, Model]:
    """The folder of the pairs with these inputs, if any, and the model as traced; what.json describes the inputs."""
    batch = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[:size], tree), inputs)
    seen = program(model, schedule, t, batch, identity)
    if seen is None:
        return None, model
    what = {
        "version": _VERSION,
        "identity": identity,
        "program": seen.digest,
        "weights, times and inputs": digest((model, t, to_host(inputs))),
        "schedule": type(schedule).__name__,
        "solver": dataclasses.asdict(solver),
        "batch": size,
    }
    text = json.dumps(what, indent=2, sort_keys=True)
    found = Path(cache) / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (found / "what.json").exists():
        if program(model, schedule, t, batch, identity) != seen:
            return _not_cached("each time that it is traced, it computes something else"), model
        write_atomically(found / "what.json", text.encode())
    return found, programs.marked(model, seen)


def write(path: Path, samples: PyTree) -> None:
    """Keep a batch of samples.

    Raises:
        OSError: if it cannot be written to the disk.
    """
    write_arrays(path, {f"arr_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(to_host(samples)))})


def read(path: Path, like: PyTree) -> PyTree | None:
    """The samples in a file, shaped like `like`; None if there is none or it is damaged (zip checks each CRC).

    With several processes, all get what the first one finds.
    """
    found = _read(path, like) if is_first() else None
    if not of_first(found is not None):
        return None
    return jax.tree.map(jnp.asarray, of_first(like if found is None else found))


def _read(path: Path, like: PyTree) -> PyTree | None:
    if not path.exists():
        return None
    leaves, structure = jax.tree.flatten(like)
    try:
        arrays = read_arrays(path, [f"arr_{i}" for i in range(len(leaves))])
        for array, leaf in zip(arrays, leaves, strict=True):
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"array {array.dtype}{array.shape} where {leaf.dtype}{leaf.shape} belongs")
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).warning("damaged teacher cache file %s is made again (%s)", path, error)
        return None
    return jax.tree.unflatten(structure, arrays)
