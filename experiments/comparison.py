"""What was learned beside the hand-made grids, on held-out noise."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.tree_util import Partial

from ld3_jax import losses
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Student, on_grid
from ld3_jax.learning.student import losses_in_batches, run_in_batches
from ld3_jax.teacher import Pairs

Errors = dict[str, np.ndarray]  # name -> (n,) one number a noise
SQUARED_ERROR, LPIPS = "squared error", "LPIPS"
_LPIPS_CACHE = Path("~/.cache/ld3_jax").expanduser()


class Comparison(NamedTuple):
    """Errors by measure and name, and each name's first samples."""

    errors: dict[str, Errors]
    samples: dict[str, np.ndarray]


def loss_function(name: str) -> Partial:
    """The loss of that name, of losses.LOSSES or "lpips", with its weights."""
    return losses.lpips(cache=_LPIPS_CACHE) if name == "lpips" else Partial(losses.LOSSES[name])


def compare(
    student: Student,
    found: Mapping[str, Discretization],
    test: Pairs,
    *,
    loss: str,
    title: str,
    batch_size: int,
    shown: int = 0,
) -> Comparison:
    """Print how far what was learned and the hand-made grids land from the teacher.

    Args:
        student: what to run; its own loss is not used.
        found: name -> what to compare with the hand-made grids; one is "learned".
        test: held-out pairs.
        loss: what was learned on: LPIPS is a second measure where it is "lpips".
        title: of the tables.
        batch_size: the most samples to integrate at a time.
        shown: how many samples of each to return.
    """
    measures = {SQUARED_ERROR: Partial(losses.l2)} | ({LPIPS: loss_function(loss)} if loss == "lpips" else {})
    compared = Comparison({measure: {} for measure in measures}, {})
    grids = {name: on_grid(name, student.schedule, student.solver) for name in GRIDS}
    for name, times in {**found, **grids}.items():
        samples = run_in_batches(student, times, test.x_T, test.cond, batch_size=batch_size)
        compared.samples[name] = np.asarray(samples[:shown])
        for measure, function in measures.items():
            each = losses_in_batches(function, samples, test.x_0, batch_size=batch_size)
            compared.errors[measure][name] = np.asarray(each)
    for measure, errors in compared.errors.items():
        _print_table(errors, f"{title}, {student.solver}\n{measure}")
    return compared


def best_hand_made(errors: Errors) -> str:
    """The hand-made grid with the least mean error."""
    return min(GRIDS, key=lambda name: float(errors[name].mean()))


def summary(errors: Errors) -> dict[str, dict[str, float]]:
    """Mean and median of the errors."""
    return {name: {"mean": float(values.mean()), "median": float(np.median(values))} for name, values in errors.items()}


def _print_table(errors: Errors, what: str) -> None:
    """The comparison, best first."""
    print(f"\n{what} against the teacher on {len(errors['learned'])} held-out noises:\n")
    print(f"  {'grid':<10}{'mean':>11}{'median':>11}{'mean vs learned':>18}")
    for name, values in sorted(errors.items(), key=lambda item: float(item[1].mean())):
        ratio = values.mean() / errors["learned"].mean()
        print(f"  {name:<10}{values.mean():>11.5f}{np.median(values):>11.5f}{ratio:>17.2f}x")
    print(flush=True)
