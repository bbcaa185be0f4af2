"""Which noises to make the teacher's pairs from: mostly the candidates that a solver with few calls gets wrong.

A few samples hold most of a student's error: the brightest 3 % of a survey's galaxies hold more than half of it. A
hundred noises drawn at random contain two or three of these, or none, and the result depends on which. How far two
cheap solvers end from each other tells which noises they are. These are drawn more often, and each pair's weight is the
inverse of its probability of being drawn, so that weighted means estimate the means over all candidates.

Reference: Horvitz and Thompson, J. Am. Stat. Assoc. 47 (1952), the weights; Madow, Ann. Math. Stat. 20 (1949),
systematic sampling.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ld3_jax import losses, solvers
from ld3_jax.denoisers import Model
from ld3_jax.grids import grid
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver

SOLVERS = (Solver("dpmpp", 5), Solver("dpmpp", 10))  # the cheap ones
GRID = "quadratic"  # on which few calls do well
_EVEN = 0.5  # share of a probability that does not depend on the difference
CALLS = sum(solver.calls for solver in SOLVERS)  # of the network, for each candidate


class Chosen(NamedTuple):
    """Which candidates are taken, in the order in which they were drawn, and the weight of each, of mean 1."""

    indices: Int[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]


@jax.jit
def differences(model: Model, schedule: NoiseSchedule, inputs: tuple[PyTree, PyTree]) -> Float[Array, "batch"]:
    """The squared difference of the samples of two cheap solvers from each noise, averaged over its elements.

    Args:
        model: model(x, t, cond) -> noise prediction.
        schedule: its noise schedule, of vectors.
        inputs: initial states and their conditions.
    """
    x_T, cond = inputs
    few, more = (
        solvers.sample(model, schedule, x_T, grid(GRID, schedule, solver.n_steps), solver=solver, cond=cond)
        for solver in SOLVERS
    )
    return losses.l2(few, more)


def choose(difference: Float[np.ndarray, "candidates"], count: int) -> Chosen:
    """Take candidates in proportion to 1/2 + d / (2 mean(d)), each at most once.

    Systematic sampling: sort the candidates by their differences d and take one at regular intervals, so that each
    level of difficulty has its share.

    Args:
        difference: d of each candidate; a candidate whose d is not finite is never taken.
        count: how many to take, at most as many as there are.

    Raises:
        FloatingPointError: if fewer differences are finite.
    """
    order = np.argsort(difference, kind="stable")  # NaN comes last
    order = order[np.isfinite(difference[order])]
    if len(order) < count:
        raise FloatingPointError(
            f"of {len(difference)} candidate noises {len(order)} have finite samples with few calls, not {count}; with "
            "choose=None (data.candidates=0) all noises are taken"
        )
    d = np.asarray(difference, float)[order]
    share = _shares(_EVEN / len(d) + (1 - _EVEN) * d / max(d.sum(), np.finfo(float).tiny), count)
    taken = np.searchsorted(np.cumsum(share), np.arange(count) + 0.5).clip(max=len(d) - 1)
    weight = np.zeros(len(difference))
    weight[order[taken]] = 1 / share[taken]
    indices = np.flatnonzero(weight)
    return Chosen(indices, weight[indices] / weight[indices].mean())


def _shares(size: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n"]:
    """The probability of taking each: in proportion to its size, at most 1; they add up to the count."""
    share = np.zeros_like(size)
    while True:
        free = share < 1
        scale = (count - (~free).sum()) / size[free].sum() if free.any() else 0.0
        share[free] = size[free] * scale
        if not (share > 1).any():
            return share
        share[share > 1] = 1
