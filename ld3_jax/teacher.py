"""The teacher: start noise and where an accurate solver takes it, made once, in batches, and kept on disk."""

import dataclasses
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ld3_jax import solvers
from ld3_jax.checkpoint import write_atomically
from ld3_jax.denoisers import Model
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Method

_CACHE_VERSION = 1
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


class Pairs(NamedTuple):
    """Start states and the teacher's samples, with a leading axis of samples throughout."""

    x_T: PyTree  # scaled by the prior
    x_0: PyTree
    cond: PyTree = None


def digest(tree: PyTree) -> str:
    """SHA-256, as 16 hexadecimal digits, of a pytree's leaves: their paths, shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def make_pairs(
    model: Model,
    schedule: NoiseSchedule,
    method: Method,
    t: Array,
    key: PRNGKeyArray,
    count: int,
    shape: tuple[int, ...],
    *,
    draw_condition: Callable[[PRNGKeyArray, int], PyTree] | None = None,
    batch_size: int = 25,
    cache: Path | None = None,
    identity: dict[str, Any] | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Draw start noise and integrate it with the teacher.

    Sample i starts from its own key, so its noise depends on neither the batch size nor the count.

    Args:
        model: model(x, t, cond) -> noise prediction; a pytree with its weights as leaves.
        schedule: its noise schedule.
        method: the teacher's solver.
        t: (n_steps + 1,) the teacher's grid.
        key: for noise and conditions.
        count: number of pairs.
        shape: shape of one state.
        draw_condition: draw_condition(key, n) -> n conditions, a pytree with leading axis n.
        batch_size: the most samples to integrate at a time; the batches are made equal.
        cache: a directory in which to keep the pairs. What is there already is not made again; a damaged file is named
            in a warning and made again. Pairs of other models, solvers, grids, keys or counts lie elsewhere in it.
        identity: what else tells this model from others (its weights are told apart anyway): names, versions.
        sharding: how a batch spreads over devices, along its first axis.
        on_batch: called as on_batch(batches done, batches in all).

    Returns:
        The pairs, on the device.

    Raises:
        ValueError: if count or batch_size is less than 1.
        OSError: if the disk does not take a batch; earlier batches stay.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    n_batches, size = equal_batches(count, batch_size, 1 if sharding is None else sharding.num_devices)
    noise_key, cond_key = jax.random.split(key)
    conditions = draw_condition(cond_key, count) if draw_condition else None
    model = replicate(model, sharding)
    directory = None
    if cache is not None:
        what = _describe(model, schedule, method, t, key, count, size, shape, conditions, identity)
        directory = _cache_directory(cache, what)
    batches = []
    for i in range(n_batches):
        indices = jnp.arange(i * size, (i + 1) * size) % count  # the last batch is filled up with the first samples
        x_T = schedule.prior_scale * draw_noise(noise_key, indices, shape)
        cond = jax.tree.map(lambda leaf, indices=indices: leaf[indices], conditions)
        path = directory / f"batch_{i:05d}.npz" if directory else None
        batch = _read(path, Pairs(x_T, x_T, cond)) if path else None
        if batch is None:
            x_T, cond = jax.device_put((x_T, cond), automatic(sharding) if sharding else None)
            batch = Pairs(x_T, _integrate(model, schedule, method, t, x_T, cond), cond)
            if path:
                _write(path, batch)
        batches.append(batch)
        if on_batch:
            on_batch(i + 1, n_batches)
    return replicate(jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *batches), sharding)


def equal_batches(count: int, batch_size: int, multiple: int = 1) -> tuple[int, int]:
    """How many equal batches of at most `batch_size` hold `count` samples, and their size, a multiple of `multiple`."""
    n_batches = -(-count // max(batch_size // multiple * multiple, multiple))
    return n_batches, -(-count // (n_batches * multiple)) * multiple


def replicate(tree: PyTree, sharding: jax.sharding.NamedSharding | None) -> PyTree:
    """A copy on each of the devices that batches spread over; without several devices, the tree itself."""
    if sharding is None:
        return tree
    return jax.device_put(tree, automatic(sharding).update(spec=jax.sharding.PartitionSpec()))


def automatic(sharding: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    """The same sharding with the compiler free to place what follows from it, whatever axis types its mesh has."""
    mesh = jax.sharding.Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names)
    return jax.sharding.NamedSharding(mesh, sharding.spec)


@partial(jax.jit, static_argnames="shape")
def draw_noise(key: PRNGKeyArray, indices: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise z of the samples with these indices; each has its own key."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(indices)


@jax.jit
def _integrate(model: Model, schedule: NoiseSchedule, method: Method, t: Array, x_T: Array, cond: PyTree) -> PyTree:
    return solvers.sample(model, schedule, x_T, t, cond=cond, remat=False, **dataclasses.asdict(method))


def _describe(model, schedule, method, t, key, count, size, shape, conditions, identity) -> dict[str, Any]:
    """Everything that determines the pairs, as JSON."""
    return {
        "version": _CACHE_VERSION,
        "identity": identity,
        "weights": digest(model),
        "schedule": dataclasses.asdict(schedule),
        "method": dataclasses.asdict(method),
        "t": digest(t),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "count": count,
        "batch": size,
        "shape": list(shape),
        "conditions": digest(conditions),
        "dtype": str(jnp.result_type(float)),
    }


def _cache_directory(cache: Path, what: dict[str, Any]) -> Path:
    text = json.dumps(what, indent=2, sort_keys=True)
    directory = Path(cache) / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (directory / "what.json").exists():
        write_atomically(directory / "what.json", text.encode())
    return directory


def _write(path: Path, batch: Pairs) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, *map(np.asarray, jax.tree.leaves(batch)))
    write_atomically(path, buffer.getvalue())


def _read(path: Path, like: Pairs) -> Pairs | None:
    """The batch in a file, or None if there is none or it is damaged (zip checks each array's CRC)."""
    if not path.exists():
        return None
    leaves, structure = jax.tree.flatten(like)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(leaves))]
        for array, leaf in zip(arrays, leaves, strict=True):
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"array {array.dtype}{array.shape} where {leaf.dtype}{leaf.shape} belongs")
    except _DAMAGED as error:
        logging.getLogger(__name__).warning("damaged teacher cache file %s is made again (%s)", path, error)
        return None
    return jax.tree.unflatten(structure, map(jnp.asarray, arrays))
