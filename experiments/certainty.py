"""How sure the result is: the error of the learned schedule on the pairs and on held-out noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.run import Run
from ld3_jax.batches import to_host
from ld3_jax.comparison import SQUARED_ERROR, Comparison, Judge
from ld3_jax.learning import Learned
from ld3_jax.learning.student import weighted
from ld3_jax.metrics import Interval

_BEYOND = 1.2  # times the largest norm of the pairs


class Certainty(NamedTuple):
    """Mean squared errors, and how far the pairs reach.

    Attributes:
        pairs: the mean on the pairs that were learned from, with their weights.
        halves: the means on two halves of the pairs.
        held_out: the mean on held-out noise, with its 95 % interval.
        beyond: how many of the teacher's held-out samples have a norm a fifth above all pairs; 0 on a manifold.
        count: how many held-out samples there are.
    """

    pairs: float
    halves: tuple[float, float]
    held_out: Interval
    beyond: int
    count: int

    def lines(self) -> list[str]:
        """The lines to print."""
        first, second = self.halves
        said = [
            f"mean squared error: {self.pairs:.4g} on the pairs ({first:.4g} and {second:.4g} on halves of them), "
            f"{self.held_out} on held-out noise"
        ]
        if self.held_out.low > max(self.halves):
            said.append("warning: the error on held-out noise is higher than on the pairs; increase data.train")
        if self.beyond:
            said.append(
                f"warning: {self.beyond} of {self.count} held-out samples are larger than all samples of the "
                "pairs by more than a fifth; increase data.train or data.candidates"
            )
        return said


def of(run: Run, learned: Learned, compared: Comparison) -> Certainty:
    """How sure the result of a run is."""
    pairs, test = run.pairs
    judge = Judge.of(run.student, pairs, run.model, run.learner.valid_batch)
    errors = np.asarray(weighted(jnp.asarray(judge(learned.discretization).errors[SQUARED_ERROR]), pairs))
    halves = (float(errors[::2].mean()), float(errors[1::2].mean()) if len(errors) > 1 else float(errors.mean()))
    reach = _BEYOND * _norms(pairs.x_0).max() if run.model.schedule.space.flat else np.inf
    beyond = int((_norms(test.x_0) > reach).sum())
    held_out = compared.intervals(SQUARED_ERROR, "learned")["mean"]
    return Certainty(float(errors.mean()), halves, held_out, beyond, len(_norms(test.x_0)))


def _norms(samples: PyTree) -> np.ndarray:
    """The norm of each sample."""
    leaves = [leaf.reshape(len(leaf), -1).astype(float) for leaf in jax.tree.leaves(to_host(samples))]
    return np.linalg.norm(np.concatenate(leaves, 1), axis=1)
