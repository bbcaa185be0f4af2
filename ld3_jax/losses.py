"""Distances between a student's samples and its teacher's, one number a sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.batches import count_of
from ld3_jax.denoisers import as_pytree
from ld3_jax.ranges import FUNCTION, STATES, TEXT, call, check, settle, shown

_EPS = 1e-12

Samples = PyTree[Float[Array, "batch ?*shape"], "T"]  # an array, or several in one structure


def _itself(s: Array) -> Array:
    return s


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """A loss: a call, and, if it is a function of squares, phi(|r|^2), what a second-order learner needs.

    It is a pytree; the weights that its functions hold are its leaves. Give plain functions, or a
    `jax.tree_util.Partial` of a function and its weights.

    Attributes:
        residuals: residuals(x, y) -> r in parts, each (batch, size); None if the loss is not a function of squares.
        phi: phi(s) of a scalar s = |r|^2, increasing.
        call: call(x, y) -> (batch,) losses, at least 0; None: phi(|r|^2).
        measure: the heading of its own table in a comparison; "" if the table of the squared error is enough.

    Raises:
        ValueError: if both residuals and call are None.
    """

    residuals: Callable[[PyTree, PyTree], list[Array]] | None = None
    phi: Callable[[Array], Array] = _itself
    call: Callable[[PyTree, PyTree], Array] | None = None
    measure: str = field(default="", metadata={"static": True})

    def __post_init__(self) -> None:
        kinds = {"residuals": FUNCTION.or_none(), "phi": FUNCTION, "call": FUNCTION.or_none(), "measure": TEXT}
        settle(self, kinds)
        if self.residuals is None and self.call is None:
            raise ValueError("a loss needs residuals or a call, got None for both")
        for name in ("residuals", "phi", "call"):
            if jax.tree_util.all_leaves([function := getattr(self, name)]):  # a plain function holds no weights
                object.__setattr__(self, name, Partial(function))

    def __call__(self, x: Samples, y: Samples) -> Float[Array, "batch"]:
        """The loss of each sample x against its target y."""
        return jax.vmap(self.phi)(squares(self.parts(x, y))) if self.call is None else self.call(x, y)

    def parts(self, x: Samples, y: Samples) -> list[Float[Array, "batch _"]]:
        """The residuals; a ValueError if the loss is not a function of squares, or the residuals have another form."""
        if self.residuals is None:
            raise ValueError(f"the loss has no residuals, whose squares it would be a function of: {self}")
        parts, count = self.residuals(x, y), count_of(y, "targets")
        sound = isinstance(parts, list | tuple) and len(parts) > 0
        if not sound or any(jnp.ndim(part) != 2 or len(part) != count for part in parts):
            raise ValueError(f"residuals must give a list of arrays, each ({count}, size), got {shown(parts)}")
        return [*parts]


def check_increasing(loss: Loss) -> None:
    """Refuse a decreasing phi: second-order steps would go uphill."""
    values = _phi(loss, jnp.array([1e-6, 1e-3, 1.0, 1e3]))
    if jnp.shape(values) != (4,) or not (isinstance(values, Tracer) or (values[1:] >= values[:-1]).all()):
        raise ValueError(f"phi must give a number that increases with s, got {values} at s = 1e-6, 1e-3, 1 and 1000")


@jax.jit  # traced once for equal losses
def _phi(loss: Loss, s: Float[Array, "n"]) -> Array:
    return jax.vmap(loss.phi)(s)


def squares(parts: list[Float[Array, "batch _"]]) -> Float[Array, "batch"]:
    """|r|^2 of each sample, for residuals r in parts."""
    return jnp.asarray(sum(jnp.sum(part**2, -1) for part in parts))


def as_loss(loss: Callable[[PyTree, PyTree], Array]) -> Loss:
    """A `Loss` as it is, or a plain function loss(x, y) as a `Loss` without residuals."""
    return loss if isinstance(loss, Loss) else Loss(call=as_pytree(loss))


def each(loss: Callable, x: PyTree, y: PyTree) -> Float[Array, "batch"]:
    """loss(x, y); a ValueError unless it gives a number of at least 0 for each sample."""
    values = call(loss, "a loss is called as loss(samples, targets)", x, y)
    wrong = STATES.lacks(values) or jax.tree.map(jnp.shape, values) != (count_of(y, "targets"),)
    if wrong or not (isinstance(values, Tracer) or values.min() >= 0):
        raise ValueError(
            f"a loss must give a real number, at least 0, for each of {count_of(y)} samples, got {shown(values)}"
        )
    return values


def _residuals(x: PyTree, y: PyTree) -> list[Array]:
    parts = _differences(x, y)
    return [part / math.sqrt(_size(parts)) for part in parts]


def _root(s: Array) -> Array:
    return jnp.sqrt(s + _EPS)


def _mean(of: Callable[[Array], Array], x: PyTree, y: PyTree) -> Float[Array, "batch"]:
    """The mean of a function of each sample's differences."""
    parts = _differences(x, y)
    return jnp.asarray(sum(jnp.sum(of(part), 1) for part in parts)) / _size(parts)


def _root_of_mean(x: PyTree, y: PyTree) -> Float[Array, "batch"]:
    return _root(_mean(jnp.square, x, y))


def _differences(x: PyTree, y: PyTree) -> list[Array]:
    """x - y, flat, of each array of a pytree."""
    check({"samples": x, "targets": y}, dict.fromkeys(("samples", "targets"), STATES))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (x, y)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"samples and targets must have the same shapes, got {shapes[0]} and {shapes[1]}")
    count = count_of(x)
    return [(a - b).reshape(count, -1) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)]


def _size(parts: list[Array]) -> int:
    """How many numbers a sample has."""
    return sum(part.shape[1] for part in parts)


# The mean absolute error of each sample, mean_i |x_i - y_i|, over all numbers of a pytree.
l1 = Loss(call=Partial(_mean, Partial(jnp.abs)))
# The mean squared error, mean_i (x_i - y_i)^2.
l2 = Loss(_residuals, call=Partial(_mean, Partial(jnp.square)))
# The root mean squared error, sqrt(mean_i (x_i - y_i)^2). With few steps some samples end far from the teacher's, in
# another basin; the root gives them less weight, which helps the median more than the mean. Its gradient is finite
# also where x = y.
rmse = Loss(_residuals, _root, _root_of_mean)


def both(targets: PyTree[Float[Array, "n ..."]], loss: Callable[[PyTree, PyTree], Array] = l2) -> Loss:
    """sqrt(s) + s / sqrt(b), where s is another loss and b = `other_basin(targets, loss)`.

    A few samples that end in another basin than the teacher's decide the mean of s; the many others decide the mean of
    sqrt(s). Here both parts count: up to s = b, the root is the larger one.

    Args:
        targets: the teacher's samples, decoded.
        loss: s.
    """
    inner, scale = as_loss(loss), other_basin(targets, loss)
    own_call = None if inner.call is None else Partial(_root_and_square, scale, inner.call)
    return Loss(inner.residuals, Partial(_root_and_square, scale, inner.phi), own_call, inner.measure)


def other_basin(targets: PyTree[Float[Array, "n ..."]], loss: Callable = l2) -> Float[Array, ""]:
    """The loss above which a sample counts as having ended in another basin than the teacher's.

    It is a quarter of the median loss between targets from different noise; infinite if there is only one target.

    Args:
        targets: n of the teacher's samples, decoded.
        loss: loss(x, y) -> (batch,) losses.
    """
    if count_of(targets, "targets") < 2:
        return jnp.asarray(jnp.inf)
    return jnp.median(each(loss, targets, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), targets))) / 4 + _EPS


def _root_and_square(scale: Array, of: Callable[..., Array], *args: PyTree) -> Array:
    s = of(*args)
    return jnp.sqrt(s + _EPS) + s / jnp.sqrt(scale)


# By its name in a configuration: make(squared_error, targets), where squared_error is the model's own and targets
# are the teacher's samples. Open to additions: a loss of your own is one entry.
LOSSES: dict[str, Callable[[Loss, PyTree], Loss]] = {
    "both": lambda squared_error, targets: both(targets, squared_error),
    "l1": lambda squared_error, targets: l1,
    "l2": lambda squared_error, targets: squared_error,
    "rmse": lambda squared_error, targets: rmse,
}
