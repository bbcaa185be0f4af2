"""LD3: learn where the steps of a few-step solver lie, by gradients through the whole solver.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import optax
from jaxtyping import PRNGKeyArray

from ld3_jax import curve, solvers, timesteps
from ld3_jax.coefficients import no_change
from ld3_jax.gauss_newton import gauss_newton_step
from ld3_jax.learning import Discretization, students, together
from ld3_jax.metrics import Student, distances
from ld3_jax.optimizers import levenberg_marquardt, make_optimizer
from ld3_jax.steps import Learning, StepMetrics, TrainState, end_round, init_state, train_step, validate
from ld3_jax.teacher import Pairs, replicate
from ld3_jax.timesteps import TimestepParams

_DEFAULTS = Learning()
_STEPS = {"optax": train_step, "lm": gauss_newton_step}


def fit(
    student: Student,
    train: Pairs,
    valid: Pairs,
    key: PRNGKeyArray,
    *,
    start: TimestepParams | None = None,
    optimizer: optax.GradientTransformation | None = None,
    learning: Learning = _DEFAULTS,
    state: TrainState | None = None,
    on_step: Callable[[TrainState, StepMetrics], None] | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> TrainState:
    """Learn a schedule. Only scalars leave the device, and those one step late, so that it never waits.

    Args:
        student: what to run, from `metrics.make_student`.
        train: training pairs; `x_0` is what the loss compares with, so decoded if the student decodes.
        valid: validation pairs, which choose the best parameters.
        key: fixes the order of the batches.
        start: parameters to start from; default the hand-made grid with the least loss on the training pairs.
        optimizer: default Adam, 0.12 / n for the logits and 0.6 % of the mean gap for the shifts; 0.08 and 0.01 for a
            curve. With the learner "lm", `optimizers.levenberg_marquardt()`.
        learning: static choices.
        state: a state to go on from, of a run with the same arguments; it ends as if never interrupted.
        on_step: called with each step's state and figures, as NumPy scalars, once the step is known to be sound.
        sharding: how a batch spreads over devices, along its first axis.

    Returns:
        The last state; `state.best` are the learned parameters, for `timesteps.from_params`, or where more than times
        are learned for `learning.discretization`.

    Raises:
        ValueError: if there are fewer pairs than a batch, or a batch does not divide among the devices.
        FloatingPointError: if a loss is not finite; it names the step. Earlier steps have reached `on_step`.
    """
    count = len(jax.tree.leaves(train)[0])
    devices = 1 if sharding is None else sharding.num_devices
    if learning.batch_size > count or learning.batch_size % devices:
        raise ValueError(
            f"batch_size must be at most the {count} training pairs and divide by the {devices} devices, "
            f"got {learning.batch_size}"
        )
    optimizer = optimizer or _default_optimizer(student, learning)
    student, train, valid = replicate((student, train, valid), sharding)
    if state is None:
        if start is None:
            best = rank_grids(student, train, learning, sharding=sharding)[0][0]
            (start,) = starts(student, [best], 1, key, learning)
        state = init_state(student, train, valid, start, optimizer, learning, sharding=sharding)
    now: TrainState = replicate(state, sharding)
    if now.done:
        return now
    static = {"learning": learning, "sharding": sharding}
    take_step = _STEPS[learning.learner]
    unchecked: tuple[TrainState, StepMetrics] | None = None
    for step in range(int(now.step) + 1, learning.steps + 1):
        now, figures = take_step(now, student, train, key, optimizer=optimizer, **static)
        if step % learning.validate_every == 0 or step == learning.steps:
            now = validate(now, student, valid, **static)
        if learning.move_validation and learning.gamma and step % (count // learning.batch_size) == 0:
            now = end_round(now, student, valid, **static)
        if unchecked and _is_last(*unchecked, on_step):  # look at the step before while this one runs
            return unchecked[0]
        unchecked = (now, figures)
    if unchecked:
        _is_last(*unchecked, on_step)
    return now


def starts(
    student: Student,
    grids: Sequence[str | Discretization],
    count: int,
    key: PRNGKeyArray,
    learning: Learning,
    *,
    spread: float = 0.3,
) -> list[TimestepParams]:
    """Parameters to start from: the grids in turn, then the first one again with noise on its logits.

    A curve starts as `learning.warped`, whatever the grids.

    Args:
        student: the student.
        grids: hand-made grids by name, or what was learned before, the favourite first.
        count: how many starts.
        key: of the noise.
        learning: static choices.
        spread: standard deviation of the noise.
    """
    params = [_start(student, grid, learning) for grid in grids[:count]]
    if learning.nfes:
        params = [curve.start(learning.degree)]
    for noise_key in jax.random.split(key, max(count - len(params), 1))[: count - len(params)]:
        logits = params[0].logits
        params.append(params[0]._replace(logits=logits + spread * jax.random.normal(noise_key, logits.shape)))
    return params


def _start(student: Student, grid: str | Discretization, learning: Learning) -> TimestepParams:
    """The parameters that stand for a grid."""
    schedule, method = student.schedule, student.method
    if isinstance(grid, str):
        t = timesteps.grid(grid, schedule, method.n_steps)
        grid = Discretization(t, t, None)
    change = grid.coefficients
    if change is None and "coefficients" in learning.what:
        table = jax.eval_shape(partial(solvers.make_table, schedule, grid.t, **dataclasses.asdict(method)))
        change = no_change(table, learning.history)
    return timesteps.to_params(grid.t, grid.t_c, schedule, learning.space)._replace(coefficients=change or ())


def _default_optimizer(student: Student, learning: Learning) -> optax.GradientTransformation:
    if learning.learner == "lm":
        return levenberg_marquardt()
    if learning.nfes:
        return make_optimizer("adam", 0.08, "adam", 0.01, learning.steps)
    n = student.method.n_steps
    mean_gap = timesteps.width(student.schedule, learning.space) / n
    return make_optimizer("adam", 0.12 / n, "adam", 0.006 * mean_gap, learning.steps)


def _is_last(
    state: TrainState, figures: StepMetrics, on_step: Callable[[TrainState, StepMetrics], None] | None
) -> bool:
    """Hand a step to `on_step` if its loss is finite; whether learning is done."""
    figures = jax.device_get(figures)
    if not math.isfinite(figures.loss):
        raise FloatingPointError(f"the loss is {figures.loss} at step {int(state.step)}")
    if on_step:
        on_step(state, figures)
    return bool(state.done)


def rank_grids(
    student: Student,
    pairs: Pairs,
    learning: Learning = _DEFAULTS,
    *,
    sharding: jax.sharding.NamedSharding | None = None,
) -> list[tuple[str, float]]:
    """Hand-made grids and their mean losses on the pairs, best first; for a curve, over all its numbers of calls."""
    found = {}
    for name in timesteps.GRIDS:
        means = []
        for one in students(student, learning):
            t = timesteps.grid(name, one.schedule, one.method.n_steps)
            means.append(distances(one, t, t, pairs, batch_size=learning.valid_batch, sharding=sharding).mean())
        found[name] = float(together(means))
    return sorted(found.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
