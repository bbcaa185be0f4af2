"""Distances between a student's samples and its teacher's, one number a sample."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.batches import count_of
from ld3_jax.ranges import STATES, call, check, shown

_EPS = 1e-12

Samples = PyTree[Float[Array, "batch ?*shape"], "T"]  # an array, or several in one structure


def l2(x: Samples, y: Samples) -> Float[Array, "batch"]:
    """Mean squared error of each sample, mean_i (x_i - y_i)^2, over all numbers of a pytree."""
    return _mean(jnp.square, x, y)


def l1(x: Samples, y: Samples) -> Float[Array, "batch"]:
    """Mean absolute error of each sample, mean_i |x_i - y_i|, over all numbers of a pytree."""
    return _mean(jnp.abs, x, y)


def rmse(x: Samples, y: Samples) -> Float[Array, "batch"]:
    """Root mean squared error of each sample, sqrt(mean_i (x_i - y_i)^2).

    With few steps some samples end far from the teacher's, in another basin; under the root they weigh less, which
    serves the median more than the mean. The gradient is finite where x = y, too.
    """
    return jnp.sqrt(l2(x, y) + _EPS)


def both(targets: PyTree[Float[Array, "n ..."]], loss: Callable = l2) -> Partial:
    """sqrt(s) + s / sqrt(b), where s is another loss and b = `other_basin(targets, loss)`.

    The mean of s is decided by the few samples that end in another basin than the teacher's, the mean of sqrt(s) by the
    many that do not. Here each part counts: up to s = b the root is the larger one.

    Args:
        targets: the teacher's samples, decoded.
        loss: s.
    """
    return Partial(_both, other_basin(targets, loss), loss if isinstance(loss, Partial) else Partial(loss))


def each(loss: Callable, x: PyTree, y: PyTree) -> Float[Array, "batch"]:
    """loss(x, y); a ValueError unless that is a number for each sample, at least 0."""
    found = call(loss, "a loss is called as loss(samples, targets)", x, y)
    wrong = STATES.lacks(found) or jax.tree.map(jnp.shape, found) != (count_of(y, "targets"),)
    if wrong or not (isinstance(found, jax.core.Tracer) or found.min() >= 0):
        raise ValueError(
            f"a loss must give a real number, at least 0, for each of {count_of(y)} samples, got {shown(found)}"
        )
    return found


def other_basin(targets: PyTree[Float[Array, "n ..."]], loss: Callable = l2) -> Float[Array, ""]:
    """The loss above which a sample counts as having ended in another basin than the teacher's.

    It is a quarter of the median loss between targets from different noise; infinite if there is one target only.

    Args:
        targets: n of the teacher's samples, decoded.
        loss: loss(x, y) -> (batch,) losses.
    """
    if count_of(targets, "targets") < 2:
        return jnp.asarray(jnp.inf)
    return jnp.median(each(loss, targets, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), targets))) / 4 + _EPS


def lpips(net: str = "vgg", cache: Path | None = None) -> Partial:
    """LPIPS as a loss of images; see `networks.lpips.load`."""
    from ld3_jax.networks import lpips  # with Flax, which nothing else here needs

    return lpips.load(net, cache)


def inception(path: Path | None = None) -> Partial:
    """The squared distance in Inception's features as a loss of images; see `networks.inception.load_distance`."""
    from ld3_jax.networks import inception

    return inception.load_distance(path)


class LeastSquares(NamedTuple):
    """A loss of the form phi(|r|^2)."""

    residuals: Callable[[PyTree, PyTree], list[Array]]  # residuals(x, y) -> r in parts, each (batch, size)
    phi: Callable[[Array], Array]  # of a scalar


def least_squares(loss: Callable) -> LeastSquares:
    """What a learner of second order needs of a loss.

    For `l2` and `rmse`, r = (x - y) / sqrt(d); for `lpips`, `inception` and any other bound method of an object that
    has `residuals`, what that gives; for `both` those of the loss in it.

    Args:
        loss: `l2`, `rmse`, `lpips` or `inception`, as it is or in a `Partial`, or `both`.

    Raises:
        ValueError: if it is another loss.
    """
    function = getattr(loss, "func", loss)
    if hasattr(getattr(function, "__self__", None), "residuals"):
        return LeastSquares(partial(loss, method="residuals"), lambda s: s)
    if function is _both:
        scale, inner = loss.args
        residuals, phi = least_squares(inner)
        return LeastSquares(residuals, lambda s: _root_and_square(phi(s), scale))
    if function in (l2, rmse):
        return LeastSquares(_residuals, lambda s: jnp.sqrt(s + _EPS) if function is rmse else s)
    raise ValueError(
        f"steps of second order (GaussNewton, LevenbergMarquardt) need one of the losses {OF_SQUARES}; "
        f"GradientDescent takes any loss, got {loss}"
    )


def _both(scale: Array, loss: Callable, x: PyTree, y: PyTree) -> Array:
    return _root_and_square(loss(x, y), scale)


def _root_and_square(s: Array, scale: Array) -> Array:
    return jnp.sqrt(s + _EPS) + s / jnp.sqrt(scale)


def _mean(of: Callable[[Array], Array], x: PyTree, y: PyTree) -> Float[Array, "batch"]:
    """The mean of a function of each sample's differences."""
    parts = _differences(x, y)
    return sum(jnp.sum(of(part), 1) for part in parts) / _size(parts)


def _residuals(x: PyTree, y: PyTree) -> list[Array]:
    parts = _differences(x, y)
    return [part / math.sqrt(_size(parts)) for part in parts]


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


LOSSES = {"l1": l1, "l2": l2, "rmse": rmse}
OF_SQUARES = ("both", "inception", "l2", "lpips", "rmse")
