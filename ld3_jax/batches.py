"""Many samples as equal batches, one after the other, each spread over the devices of the mesh in context.

Under `with jax.set_mesh(mesh):` every batch of this library is divided along its first axis among the mesh's devices,
and everything else is copied to each of them. Without a mesh nothing is moved. The devices may belong to several
processes, which then all run the same program.
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from ld3_jax.ranges import ARRAYS, COUNT, COUNT_OR_ZERO, FUNCTION, check, entrance, shown


def all_devices() -> Mesh:
    """A mesh of all processes' devices, for `jax.set_mesh`, whose one axis the compiler may use as it sees fit."""
    return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def device_count() -> int:
    """The number of devices of the mesh in context; 1 without a mesh."""
    return _mesh().size if _mesh().axis_names else 1


def count_of(tree: PyTree, what: str = "samples") -> int:
    """How many samples a pytree holds; a ValueError unless its leaves are arrays that share their leading axis."""
    check({what: tree}, {what: ARRAYS})
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"{what} must share their leading axis, got {shown(tree)}")
    return lengths.pop()[0]


@entrance(count=COUNT_OR_ZERO, batch_size=COUNT)
def equal_batches(count: int, batch_size: int) -> tuple[int, int]:
    """How many equal batches of at most `batch_size` hold `count` samples, and their size, for whole devices."""
    devices = device_count()
    n_batches = -(-count // max(batch_size // devices * devices, devices))
    return n_batches, -(-count // (n_batches * devices)) * devices


@entrance(function=FUNCTION, batch_size=COUNT)
def in_batches(function: Callable[[PyTree], PyTree], inputs: PyTree, batch_size: int) -> PyTree:
    """Apply a function of batches to inputs with a longer leading axis, under jit.

    Args:
        function: from a batch to a pytree whose leaves have the batch's leading axis.
        inputs: a pytree whose leaves share their leading axis.
        batch_size: the most samples at a time; the batches are made equal.

    Returns:
        What the function returns, with the leading axis of the inputs.
    """
    count = count_of(inputs)
    n_batches, size = equal_batches(count, batch_size)
    indices = jnp.arange(n_batches * size) % count
    batched = jax.tree.map(lambda leaf: leaf[indices].reshape(n_batches, size, *leaf.shape[1:]), inputs)
    outputs = jax.lax.map(lambda batch: function(spread(batch)), batched)
    if any(leaf.shape[:2] != (n_batches, size) for leaf in jax.tree.leaves(outputs)):
        raise ValueError(f"a function of {n_batches} batches of {size} gives other leading axes, {shown(outputs)}")
    return jax.tree.map(lambda leaf: leaf.reshape(n_batches * size, *leaf.shape[2:])[:count], outputs)


def finite(samples: PyTree) -> Bool[np.ndarray, "n"]:
    """Which of n samples hold finite numbers only."""
    count_of(samples)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(samples)):
        raise ValueError("make pairs and learn times outside jit: their values are checked")
    return to_host(_finite(samples))


def check_finite(samples: PyTree, what: str, remedy: str = "", first: int = 0) -> None:
    """Refuse samples that are not finite.

    Args:
        samples: a pytree with a leading axis of samples.
        what: what they are, for the message.
        remedy: what to do about them, for the message.
        first: the number of the first one.

    Raises:
        FloatingPointError: it says how many there are, and which.
    """
    bad = np.flatnonzero(~finite(samples))
    if len(bad):
        shown = ", ".join(map(str, bad[:10] + first)) + (", ..." if len(bad) > 10 else "")
        count = len(jax.tree.leaves(samples)[0])
        raise FloatingPointError(f"{what}: {len(bad)} of {count} are not finite, namely number {shown}{remedy}")


@jax.jit
def _finite(samples: PyTree) -> Bool[Array, "n"]:
    each = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(samples)]
    return jnp.stack(each).all(0)


def spread(batch: PyTree) -> PyTree:
    """Ask the compiler to divide a batch among the devices, under jit; otherwise each device computes all of it."""
    count, devices = len(jax.tree.leaves(batch)[0]), device_count()
    if count % devices:
        logging.getLogger(__name__).warning(
            "a batch of %d does not divide among the %d devices: each computes all of it", count, devices
        )
        return whole(batch)
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(_mesh().axis_names)) if devices > 1 else batch


def whole(tree: PyTree) -> PyTree:
    """Ask the compiler to keep a pytree on each of the devices, under jit; so every process can read it."""
    return jax.lax.with_sharding_constraint(tree, PartitionSpec()) if _mesh().axis_names else tree


def divide(batch: PyTree) -> PyTree:
    """Divide a batch among the devices, outside jit."""
    return _put(batch, PartitionSpec(_mesh().axis_names))


def replicate(tree: PyTree) -> PyTree:
    """Copy a pytree to each of the devices, outside jit; without a mesh, the pytree itself."""
    return _put(tree, PartitionSpec())


def to_host(tree: PyTree) -> PyTree:
    """NumPy arrays, in every process, of arrays that may lie divided among the devices of several."""
    return jax.tree.map(np.asarray, replicate(tree))


def _put(tree: PyTree, spec: PartitionSpec) -> PyTree:
    return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), spec)) if _mesh().axis_names else tree


def _mesh() -> jax.sharding.AbstractMesh:
    """The mesh in context; with no axes if there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the mesh's axes must be of type AxisType.Auto, as in ld3_jax.batches.all_devices(), got {mesh.axis_types}"
        )
    return mesh
