"""A module is tried before it is used: its output, and which of its derivatives are right."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch

_SHARE = 0.3  # relative difference allowed between derivatives; a wrong one is off by about its own size
_SINGLE = 1e-5  # above the rounding of single precision, below that of half precision
_OTHERS = 0.1  # relative; weights of whole numbers round by the largest state of a batch
_SHORT = 3e-4  # of the states' size; over this distance half precision rounds by 1e-3 of the output, single by 1e-6
_BENT = 1e-4
_LONG = 0.1  # of the states' size; half precision rounds differences over this distance by a few per cent


class PyTorchError(RuntimeError):
    """An error of a running module, on one line that names it."""


def tried(host: Any, t: np.ndarray, derivatives: Sequence[str]) -> Any:
    """A host whose module works, with the first derivative that is right, and a digest of its output.

    Derivatives are compared with central differences. In half precision, differences are noise in times and rough in
    states.

    Args:
        host: a host of `interop.pytorch` with the derivative "difference".
        t: the time at which to try it.
        derivatives: the names of the derivatives to try.

    Raises:
        ValueError: if numbers are not finite, differ the second time, or depend on other samples; if no derivative is
            right.
        PyTorchError: if the module does not run.
    """
    random = np.random.default_rng(0)
    x, dx = random.standard_normal((2, 2, *host.shape), np.float32)
    where = (x, t, *(np.repeat(leaf[None], 2, 0) for leaf in jax.tree.leaves(host.like)))
    output = _output(host, dx, where)
    directions = (np.stack([dx, 0 * dx]), np.array([0, 1], np.float32))
    eps = torch.finfo(host.weights.dtype).eps
    exact = eps < _SINGLE and not _rounds(host, output, dx, where)
    # The error of a difference of numbers of this size, with the steps of `pytorch_derivatives.difference`.
    of_steps = np.array([eps**0.6 * np.linalg.norm(dx) / np.linalg.norm(x), eps**0.5 / float(t)])
    rounding = 3 * np.linalg.norm(output) * of_steps
    if exact:
        expected = host.along(*directions, *where)
        allowed = _SHARE * _norms(expected) + rounding
    else:
        expected, allowed = _roughly(host, output, dx, where)
    found, along = _first_right(host, derivatives, lambda one: one.along(*directions, *where), expected, allowed)
    squares = _norms(along) ** 2
    allowed = _SHARE * squares + exact * rounding * _norms(along)
    lacks = _why_not(lambda: _squares(host, along, dx, where), squares, allowed)
    _warn_of_jumps(host, output, along[1], where)
    digest = hashlib.sha256(output.tobytes()).hexdigest()[:16]
    return replace(found, lacks=lacks, output=digest)


def _output(host: Any, others: np.ndarray, where: Sequence[np.ndarray]) -> np.ndarray:
    """Its output, which must be finite, and the same each time and next to any other states."""
    output = host.value(*where)
    if not np.isfinite(output).all():
        raise ValueError(f"{host.name} gives numbers that are not finite at t = {float(where[1]):g} for normal states")
    if not np.array_equal(output, host.value(*where)):
        raise ValueError(f"{host.name} gives other numbers the second time: it must draw nothing (dropout, noise)")
    _require_alone(host, output, others, where)
    return output


def _require_alone(host: Any, output: np.ndarray, others: np.ndarray, where: Sequence[np.ndarray]) -> None:
    """Refuse a module whose output for a state changes with the other states, or after a call with a nearby state."""
    x, t, *cond = where
    for i in (0, 1):
        beside, of_beside = 3 * others, [0 * leaf if leaf.dtype.kind == "f" else leaf.copy() for leaf in cond]
        for array, own in zip((beside, *of_beside), (x, *cond), strict=True):
            array[i] = own[i]
        found = host.value(beside, t, *of_beside)[i]
        if not np.linalg.norm(found - output[i]) <= _OTHERS * np.linalg.norm(output[i]):
            raise ValueError(
                f"{host.name} gives something else for a state where the others of its batch are different: each "
                "sample must be computed alone (no statistics of the batch, conditions of its own)"
            )
    host.value(x * np.float32(1.01), t, *cond)
    if not np.array_equal(output, host.value(*where)):
        raise ValueError(f"{host.name} gives other numbers after another call: it must keep nothing of earlier calls")


def _rounds(host: Any, output: np.ndarray, dx: np.ndarray, where: Sequence[np.ndarray]) -> bool:
    """Whether it rounds to less than single precision inside, as under autocast: small differences are rounding."""
    x, *rest = where
    step = np.float32(_SHORT) * dx
    bent = host.value(x + step, *rest) + host.value(x - step, *rest) - 2 * output
    return bool(np.linalg.norm(bent) > _BENT * np.linalg.norm(output))


def _roughly(host: Any, output: np.ndarray, dx: np.ndarray, where: Sequence[np.ndarray]) -> tuple[np.ndarray, Any]:
    """What half precision shows of derivatives: in the states, over a long step, and how far off they may be."""
    x, *rest = where

    def by(share: float) -> np.ndarray:
        step = np.float32(share) * dx
        return (host.value(x + step, *rest) - host.value(x - step, *rest)) / (2 * share)

    of_x = by(_LONG)
    away = np.linalg.norm(by(2 * _LONG) - of_x)  # guidance enlarges it
    return np.stack([of_x, 0 * of_x]), np.array([0.5 * np.linalg.norm(of_x) + away, np.inf])


def _warn_of_jumps(host: Any, output: np.ndarray, of_time: np.ndarray, where: Sequence[np.ndarray]) -> None:
    """Warn if a module rounds its time, so that its derivative in time is 0."""
    x, t, *cond = where
    if not of_time.any() and not np.array_equal(output, host.value(x, np.asarray(0.8 * t, t.dtype), *cond)):
        logging.getLogger(__name__).warning(
            "%s changes with its time, and its derivative in it is 0, as of a time that is rounded to whole steps: "
            "the network's own times are learned without it",
            host.name,
        )


def _first_right(
    host: Any, names: Sequence[str], along: Callable[[Any], np.ndarray], expected: np.ndarray, allowed: np.ndarray
) -> tuple[Any, np.ndarray]:
    """The host with the first derivative that is right, and its derivatives."""
    reasons = {}
    for name in names:
        one = replace(host, derivative=name)
        reasons[name] = _why_not(lambda one=one: along(one), expected, allowed)
        if name == "difference" and np.isinf(allowed).any():
            reasons[name] = f"differences need single precision, and it rounds more (weights in {host.weights.dtype})"
        if not reasons[name]:
            return one, along(one)
    raise ValueError(f"{host.name} cannot be differentiated ({'; '.join(map(': '.join, reasons.items()))})")


def _squares(host: Any, along: np.ndarray, dx: np.ndarray, where: Sequence[np.ndarray]) -> np.ndarray:
    """<J^T J d, d> by reverse mode, for d = dx and for the time, if J d is known."""
    of_x, of_t = host.back(along, *where)
    return np.array([np.vdot(of_x[0], dx), of_t[1]])


def _why_not(compute: Callable[[], np.ndarray], expected: np.ndarray, allowed: np.ndarray) -> str:
    """Why a derivative is not used, or ""."""
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
