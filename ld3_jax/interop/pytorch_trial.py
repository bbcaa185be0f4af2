"""A module is tried before it is used: what it gives, and which of its derivatives are right."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch

_SHARE = 0.3  # what derivatives may be from each other, relative; one that is wrong is off by about all of it
_SINGLE = 1e-5  # above the rounding of single precision, below that of half precision


class PyTorchError(RuntimeError):
    """What a module raised while it ran, on one line that names it."""


def tried(host: Any, t: np.ndarray, derivatives: Sequence[str]) -> Any:
    """A host whose module works, with the first derivative that is right, and a digest of what it gives.

    Derivatives are compared with central differences, and in half precision, where these are noise, with reverse mode.

    Args:
        host: of `interop.pytorch`; its derivative is "difference".
        t: the time to try it at.
        derivatives: the names of those to try.

    Raises:
        ValueError: if numbers are not finite, or others the second time, or no derivative is right.
        PyTorchError: if the module does not run.
    """
    random = np.random.default_rng(0)
    x, dx = random.standard_normal((2, 2, *host.shape), np.float32)
    where = (x, t, *(np.repeat(leaf[None], 2, 0) for leaf in jax.tree.leaves(host.like)))
    output = host.value(*where)
    if not np.isfinite(output).all():
        raise ValueError(f"{host.name} gives numbers that are not finite at t = {float(t):g} for normal states")
    if not np.array_equal(output, host.value(*where)):
        raise ValueError(f"{host.name} gives other numbers the second time: it must draw nothing (dropout, noise)")
    directions = (np.stack([dx, 0 * dx]), np.array([0, 1], np.float32))
    eps = torch.finfo(host.weights.dtype).eps
    # Of a difference of numbers of this size, by the steps of `pytorch_derivatives.difference`.
    rounding = (
        3
        * np.linalg.norm(output)
        * np.array([eps**0.6 * _norms(dx[None])[0] / _norms(x[None])[0], eps**0.5 / float(t)])
    )
    if eps < _SINGLE:
        expected = host.along(*directions, *where)
        allowed = _SHARE * _norms(expected) + rounding
    else:
        expected, allowed = np.zeros((2, *x.shape)), np.full(2, np.inf)
    found, along = _first_right(host, derivatives, lambda one: one.along(*directions, *where), expected, allowed)
    squares = _norms(along) ** 2
    allowed = _SHARE * squares + (eps < _SINGLE) * rounding * _norms(along)
    lacks = _why_not(lambda: _squares(host, along, dx, where), squares, allowed)
    digest = hashlib.sha256(output.tobytes()).hexdigest()[:16]
    return replace(found, lacks=lacks, output=digest)


def _first_right(
    host: Any, names: Sequence[str], along: Callable[[Any], np.ndarray], expected: np.ndarray, allowed: np.ndarray
) -> tuple[Any, np.ndarray]:
    """The host with the first derivative that is right, and its derivatives."""
    reasons = {}
    for name in names:
        one = replace(host, derivative=name)
        reasons[name] = _why_not(lambda one=one: along(one), expected, allowed)
        if name == "difference" and np.isinf(allowed).any():
            reasons[name] = f"differences need single precision, and it is in {host.weights.dtype}"
        if not reasons[name]:
            return one, along(one)
    raise ValueError(f"{host.name} cannot be differentiated ({'; '.join(map(': '.join, reasons.items()))})")


def _squares(host: Any, along: np.ndarray, dx: np.ndarray, where: Sequence[np.ndarray]) -> np.ndarray:
    """<J^T J d, d> by reverse mode, of d = dx and of the time, where J d is known."""
    of_x, of_t = host.back(along, *where)
    return np.array([np.vdot(of_x[0], dx), of_t[1]])


def _why_not(compute: Callable[[], np.ndarray], expected: np.ndarray, allowed: np.ndarray) -> str:
    """Why what is computed is not taken, or ""."""
    try:
        found = compute()
    except PyTorchError as error:
        return str(error)
    away = _norms(found - expected)
    if np.isfinite(found).all() and (away <= allowed).all():
        return ""
    return f"it is {away} from the expected, whose size is {_norms(expected)}, in states and in time"


def _norms(along: np.ndarray) -> np.ndarray:
    """The norm of each."""
    return np.linalg.norm(along.reshape(len(along), -1), axis=1)
