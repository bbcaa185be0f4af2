"""Where to start: the standard grids and the coefficients of other solvers on them, compared before learning."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ld3_jax.grids import GRIDS
from ld3_jax.learning.discretization import Discretization
from ld3_jax.learning.student import distances
from ld3_jax.learning.task import Task, order_of_round
from ld3_jax.ranges import entrance, instance


class Start(NamedTuple):
    """A possible start, and its mean loss on some training pairs."""

    name: str
    discretization: Discretization
    loss: float


@entrance(task=instance(Task))
def rank(task: Task) -> list[Start]:
    """All starts of the parametrisation on all standard grids, best first; NaN comes last.

    They are judged on as many training pairs as a validation batch holds: the pairs that are used first.

    Raises:
        FloatingPointError: if no start has a finite loss.
    """
    student, size, ranked = task.student, task.learner.valid_batch, []
    first = order_of_round(task, jnp.zeros((), jnp.int32))[:size]
    some = jax.tree.map(lambda leaf: leaf[first], task.train)
    for grid in GRIDS:
        for name, discretization in task.parametrisation.starts(grid, student.schedule, student.solver).items():
            ranked.append(
                Start(name, discretization, float(distances(student, discretization, some, batch_size=size).mean()))
            )
    ranked.sort(key=lambda start: math.inf if math.isnan(start.loss) else start.loss)
    if not math.isfinite(ranked[0].loss):
        raise FloatingPointError(f"no start has a finite loss: {ranked[0].name} has {ranked[0].loss}")
    return ranked
