"""Gauss-Newton on small batches: second-order steps from moving averages of the gradient and the matrix.

Reference: Nocedal and Wright, Numerical Optimization, chapter 10 (Gauss-Newton); Kingma and Ba, arXiv:1412.6980 (moving
averages without bias).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ld3_jax.learning.parametrisation import Params
from ld3_jax.learning.second_order import Quadratic, SecondOrder, project, solution
from ld3_jax.learning.task import Task, TrainState
from ld3_jax.ranges import LESS_THAN_ONE, NOT_NEGATIVE, POSITIVE, UP_TO_ONE, settle
from ld3_jax.space import add
from ld3_jax.teacher import Pairs


class Averages(NamedTuple):
    """Moving averages, which start at zero, and the numbers at the start."""

    gradient: Float[Array, "p"]
    matrix: Float[Array, "p p"]
    start: Float[Array, "p"]


@dataclass(frozen=True, kw_only=True)
class GaussNewton(SecondOrder):
    """Steps -rate (A + damping diag A)^-1 g, where A and g are moving averages over small batches.

    A sample has thousands of residuals, so a few samples determine the matrix of a few dozen numbers, and ten steps of
    ten samples get much further than one step of a hundred. The rate rises while A fills, by 1 - memory^k at step k,
    and falls along a cosine. Nothing needs tuning: the matrix sets the scales of the numbers. With 8 and more calls,
    some directions are hardly determined by a hundred pairs; a ridge of 1e-3 keeps the numbers near the start along
    them.

    Attributes: as in `SecondOrder`, and
        rate: the highest rate, at most 1: the whole Gauss-Newton step. The cosine ends at 5 % of it.
        damping: relative to the diagonal of A.
        momentum: decay of the average of g.
        memory: decay of the average of A.
        ridge: weight of ridge diag(A) (p - start)^2 / 2, which is added to the loss.

    Raises:
        ValueError: if a number is out of its range.
    """

    rate: float = 0.7
    damping: float = 1e-3
    momentum: float = 0.5
    memory: float = 0.9
    ridge: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {"rate": UP_TO_ONE, "damping": POSITIVE, "ridge": NOT_NEGATIVE}
        settle(self, own | dict.fromkeys(("momentum", "memory"), LESS_THAN_ONE))

    def init(self, task: Task, params: Params) -> Averages:
        start = ravel_pytree(params)[0]
        return Averages(jnp.zeros(len(start)), jnp.zeros((len(start), len(start))), start)

    def move_by(self, model: Quadratic, task: Task, state: TrainState, pairs: Pairs) -> tuple[Params, Averages]:
        old, done = state.learner, state.step.astype(float)
        new = Averages(
            (1 - self.momentum) * model.gradient + self.momentum * old.gradient,
            (1 - self.memory) * model.matrix + self.memory * old.matrix,
            old.start,
        )
        full = 1 - self.memory ** (done + 1)
        gradient, matrix = new.gradient / (1 - self.momentum ** (done + 1)), new.matrix / full
        ridge = self.ridge * jnp.diag(matrix)
        gone = ravel_pytree(state.params)[0] - old.start
        averaged = Quadratic(model.loss, gradient + ridge * gone, matrix + jnp.diag(ridge))
        step = solution(averaged, jnp.asarray(self.damping), state.params, task)
        rate = full * optax.cosine_decay_schedule(self.rate, self.steps, alpha=0.05)(done)
        return project(task, add(state.params, jax.tree.map(lambda leaf: rate * leaf, step))), new
