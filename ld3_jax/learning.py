"""What is learned, and how: static choices, and what the parameters stand for under them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ld3_jax import curve, timesteps
from ld3_jax.coefficients import Coefficients, consistent
from ld3_jax.metrics import Student
from ld3_jax.timesteps import TimestepParams

LEARNERS = ("lm", "optax")
WHAT = ("times", "shifts", "coefficients")


@dataclass(frozen=True)
class Learning:
    """How to learn; all of it static.

    The defaults are what reaches a low error on unseen noise soonest, not the paper's choices.

    Attributes:
        what: what is learned, of WHAT; the rest stays as it is at the start.
        consistent: let the coefficients change only such that constants still integrate exactly.
        history: past predictions that learned coefficients look back at; None: all.
        learner: one of LEARNERS: "optax" for steps along the gradient, "lm" for those of Levenberg and Marquardt.
        nfes: the numbers of calls that one curve is learned for; (): no curve, but the times of one number.
        warped: the hand-made grid that the curve warps, where it starts.
        degree: of the curve's warp.
        tangents: with "lm", parameters times samples that are integrated at a time.
        steps: how many steps.
        batch_size: training pairs a step.
        space: where gaps and shifts are measured, "lambda" or "t".
        max_shift: bound on the shifts, in smallest gaps.
        frozen_steps: for so many steps the shifts rest.
        validate_every: steps between validations.
        patience: after so many validations without a new best one, return to the best and lower the rates; 0: never.
        decay: factor on the rates then.
        floors: the least factor on the rates of logits and shifts.
        floor_visits: stop after so many returns with both rates at their floors.
        gamma: radius of the ball in which start noise may move, gamma d / n^2; 0 turns the soft surrogate off.
        noise_rate: rate of the noise's gradient step, times n.
        move_validation: whether validation noise moves too, once a round (a pass over the training pairs).
        valid_batch: validation samples to integrate at a time.
        remat: recompute activations in the backward pass.
    """

    what: tuple[str, ...] = ("times", "shifts")
    consistent: bool = False
    history: int | None = None
    learner: str = "optax"
    nfes: tuple[int, ...] = ()
    warped: str = "logsnr"
    degree: int = 32
    tangents: int = 128
    steps: int = 60
    batch_size: int = 10
    space: str = "lambda"
    max_shift: float = 0.5
    frozen_steps: int = 0
    validate_every: int = 10
    patience: int = 0
    decay: float = 0.8
    floors: tuple[float, float] = (0.01, 1e-5)
    floor_visits: int = 5
    gamma: float = 0.0
    noise_rate: float = 12.0
    move_validation: bool = False
    valid_batch: int = 25
    remat: bool = True

    def __post_init__(self) -> None:
        if self.learner not in LEARNERS:
            raise ValueError(f"learner must be one of {sorted(LEARNERS)}, got {self.learner!r}")
        if self.learner == "lm" and self.gamma:
            raise ValueError("the soft surrogate needs the learner 'optax': gamma must be 0 with 'lm'")
        if self.nfes and (self.learner == "lm" or self.gamma or "coefficients" in self.what):
            raise ValueError("a curve needs the learner 'optax', gamma 0, and no coefficients")
        if self.warped not in timesteps.GRIDS:
            raise ValueError(f"warped must be one of {sorted(timesteps.GRIDS)}, got {self.warped!r}")
        if not self.what or not set(self.what) <= set(WHAT):
            raise ValueError(f"what must be some of {list(WHAT)}, got {list(self.what)}")
        if self.space not in timesteps.SPACES:
            raise ValueError(f"space must be one of {sorted(timesteps.SPACES)}, got {self.space!r}")
        for name in ("steps", "batch_size", "validate_every", "valid_batch", "degree"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.history is not None and self.history < 1:
            raise ValueError(f"history must be at least 1, or None for all, got {self.history}")
        if self.max_shift < 0 or self.gamma < 0:
            raise ValueError(f"max_shift and gamma must not be negative, got {self.max_shift} and {self.gamma}")


class Discretization(NamedTuple):
    """What a student runs with."""

    t: Float[Array, "n_points"]
    t_c: Float[Array, "n_points"]
    coefficients: Coefficients | None


@partial(jax.jit, static_argnames="learning")
def discretization(params: TimestepParams, student: Student, learning: Learning) -> Discretization:
    """What the parameters stand for: the times, the network's times, and the change of the solver's coefficients."""
    schedule = student.schedule
    if learning.nfes:
        n = student.method.n_steps
        return Discretization(*curve.read_off(params, schedule, n, learning.warped, learning.max_shift), None)
    t, t_c = timesteps.from_params(params, schedule, learning.space, learning.max_shift)
    change = params.coefficients or None
    return Discretization(t, t_c, consistent(change) if change and learning.consistent else change)


def students(student: Student, learning: Learning) -> list[Student]:
    """The student for each number of calls that is learned for."""
    methods = [replace(student.method, nfe=nfe) for nfe in learning.nfes] or [student.method]
    return [student._replace(method=method) for method in methods]


def together(losses: Sequence[Array]) -> Array:
    """One loss of those of each number of calls: the geometric mean, so that each counts alike."""
    return losses[0] if len(losses) == 1 else jnp.exp(jnp.mean(jnp.log(jnp.stack(losses))))


def only_learned(grads: TimestepParams, learning: Learning) -> TimestepParams:
    """Gradients, zero where nothing is learned."""

    def kept(what: str, group: PyTree) -> PyTree:
        return group if what in learning.what else jax.tree.map(jnp.zeros_like, group)

    logits, shifts, coefficients = grads
    return TimestepParams(kept("times", logits), kept("shifts", shifts), kept("coefficients", coefficients))
