"""A learned schedule beside the hand-made grids, on unseen noise."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array

from ld3_jax import losses, timesteps
from ld3_jax.learning import Discretization
from ld3_jax.metrics import Student, losses_in_batches, run_in_batches
from ld3_jax.teacher import Pairs

Errors = dict[str, np.ndarray]  # grid -> (n,) one number a noise
SQUARED_ERROR = "squared error"
_LPIPS_CACHE = Path("~/.cache/ld3_jax").expanduser()


class Comparison(NamedTuple):
    """Errors by measure and grid, "learned", "start" and the hand-made ones, and each grid's first samples."""

    errors: dict[str, Errors]
    samples: dict[str, np.ndarray]


def loss_function(name: str) -> Partial:
    """The loss of that name, of losses.LOSSES or "lpips", with its weights."""
    return losses.lpips(cache=_LPIPS_CACHE) if name == "lpips" else Partial(losses.LOSSES[name])


def measures(loss: str) -> dict[str, Partial]:
    """What a schedule that was learned on a loss is judged by: the squared error, and LPIPS where that is the loss."""
    squared = {SQUARED_ERROR: Partial(losses.l2)}
    return squared | {"LPIPS": loss_function("lpips")} if loss == "lpips" else squared


def compare(
    student: Student,
    measures: Mapping[str, Callable[[Array, Array], Array]],
    learned: Discretization,
    test: Pairs,
    *,
    start: Discretization | None = None,
    model: str,
    batch_size: int,
    shown: int = 0,
    sharding: NamedSharding | None = None,
) -> Comparison:
    """Print how far the learned schedule and the hand-made grids land from the teacher.

    Args:
        student: what to run; its own loss is not used.
        measures: name -> measure(samples, targets) -> one number a sample.
        learned: what was learned.
        test: unseen pairs.
        start: where learning went on from, if that was no hand-made grid.
        model: its name, for the tables' heading.
        batch_size: the most samples to integrate at a time.
        shown: how many samples of each grid to return.
        sharding: how a batch spreads over devices, along its first axis.
    """
    grids = {"learned": learned} | ({"start": start} if start else {})
    for name in timesteps.GRIDS:
        t = timesteps.grid(name, student.schedule, student.method.n_steps)
        grids[name] = Discretization(t, t, None)
    found = Comparison({measure: {} for measure in measures}, {})
    for name, (t, t_c, change) in grids.items():
        samples = run_in_batches(student, t, t_c, test, change, batch_size=batch_size, sharding=sharding)
        found.samples[name] = np.asarray(samples[:shown])
        for measure, function in measures.items():
            each = losses_in_batches(function, samples, test.x_0, batch_size=batch_size, sharding=sharding)
            found.errors[measure][name] = np.asarray(each)
    for measure, errors in found.errors.items():
        _print_table(errors, f"{model}, {student.method}\n{measure}")
    return found


def best_hand_made(errors: Errors) -> str:
    """The hand-made grid with the least mean error."""
    return min(timesteps.GRIDS, key=lambda name: float(errors[name].mean()))


def summary(errors: Errors) -> dict[str, dict[str, float]]:
    """Mean and median of each grid's errors."""
    return {name: {"mean": float(values.mean()), "median": float(np.median(values))} for name, values in errors.items()}


def _print_table(errors: Errors, what: str) -> None:
    """The comparison, best first."""
    print(f"\n{what} against the teacher on {len(errors['learned'])} unseen noises:\n")
    print(f"  {'grid':<10}{'mean':>11}{'median':>11}{'mean vs learned':>18}")
    for name, values in sorted(errors.items(), key=lambda item: float(item[1].mean())):
        ratio = values.mean() / errors["learned"].mean()
        print(f"  {name:<10}{values.mean():>11.5f}{np.median(values):>11.5f}{ratio:>17.2f}x")
    print(flush=True)
