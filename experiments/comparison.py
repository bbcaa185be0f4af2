"""What was learned beside the hand-made grids and those of other methods, on held-out noise."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree

from ld3_jax import losses, metrics, programs, teacher_cache
from ld3_jax.baselines import Probe, baseline
from ld3_jax.batches import to_host
from ld3_jax.disk import digest, read_arrays, write_arrays
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Student, on_grid
from ld3_jax.learning.task import losses_in_batches, run_in_batches
from ld3_jax.pretrained import Pretrained
from ld3_jax.processes import is_first, of_first
from ld3_jax.teacher import Pairs

Errors = dict[str, np.ndarray]  # name -> (n,) one number a noise
Measures = dict[str, Partial]  # name -> a function of samples and targets, one number a noise
SQUARED_ERROR = "squared error"


class Comparison(NamedTuple):
    """Errors by measure and name, each measure's median between targets of different noise, the share of samples in
    another basin by name, and each name's first samples."""

    errors: dict[str, Errors]
    apart: dict[str, float]
    astray: dict[str, float]
    samples: dict[str, np.ndarray]


def load_measures(loss: str, model: Pretrained) -> Measures:
    """What samples are judged by: squared error, and a loss of images if it is learned by, with its weights.

    Args:
        loss: of losses.LOSSES or losses.OF_SQUARES.
        model: whose samples.

    Raises:
        ImportError: if the package that ships the weights is not installed.
        ValueError: if the loss does not take the model's samples.
    """
    found = {SQUARED_ERROR: model.squared_error}
    return found


def loss_function(loss: str, targets: PyTree, measures: Measures) -> Partial:
    """The loss that is learned by.

    Args:
        loss: of losses.LOSSES or losses.OF_SQUARES; "l2" stands for the model's own squared error.
        targets: the teacher's samples, which scale "both".
        measures: see `load_measures`.
    """
    return losses.LOSSES[loss](measures[SQUARED_ERROR], targets)


def compare(
    student: Student,
    found: Mapping[str, Discretization],
    test: Pairs,
    *,
    measures: Measures,
    title: str,
    batch_size: int,
    shown: int = 0,
) -> Comparison:
    """Print how far what was learned, baselines and the hand-made grids land from the teacher.

    Args:
        student: what to run; its own loss is not used.
        found: name -> what to compare with the hand-made grids; one is "learned".
        test: held-out pairs.
        measures: what to judge by; see `load_measures`.
        title: of the tables.
        batch_size: the most samples to integrate at a time.
        shown: how many samples of each to return.
    """
    others = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), test.x_0)
    apart = {
        measure: float(np.median(to_host(losses_in_batches(function, test.x_0, others, batch_size=batch_size))))
        for measure, function in measures.items()
    }
    compared = Comparison({measure: {} for measure in measures}, apart, {}, {})
    grids = {name: on_grid(name, student.schedule, student.solver) for name in GRIDS}
    for name, times in {**found, **grids}.items():
        samples = run_in_batches(student, times, test.x_T, test.cond, batch_size=batch_size)
        compared.samples[name] = to_host(samples[:shown])
        for measure, function in measures.items():
            each = losses_in_batches(function, samples, test.x_0, batch_size=batch_size)
            compared.errors[measure][name] = to_host(each)
        compared.astray[name] = in_another_basin(
            compared.errors[SQUARED_ERROR][name], test.x_0, measures[SQUARED_ERROR]
        )
    for measure, errors in compared.errors.items():
        _print_table(errors, compared.astray, f"{title}, {student.solver}\n{measure}")
    return compared


def baselines(
    names: Iterable[str], student: Student, probe: Probe, cache: Path | None = None
) -> dict[str, Discretization]:
    """Other methods' times for a student; none on a manifold, where they are not defined.

    Args:
        names: of ld3_jax.baselines.BASELINES.
        student: what runs on them.
        probe: the model with some initial states, for those that look at it.
        cache: a folder for their times, which some of them call the network hundreds of times for.
    """
    if not student.solver.expands(student.schedule):
        return {}
    found, n, t = {}, student.solver.n_steps, jnp.asarray(student.schedule.t_max)
    of_model, looked_at = (probe.model, student.schedule, t, (probe.x_T, probe.cond)), ""
    if cache and (seen := teacher_cache.program(*of_model)):
        looked_at = f"{seen.digest}-{digest(of_model)}"
        probe = dataclasses.replace(probe, model=programs.marked(probe.model, seen))
    for name in names:
        path = cache / f"{name}-{n}-{looked_at}.npz" if cache and looked_at else None
        t = _known(path, n + 1) if path else None
        if t is None:
            t = baseline(name, student.schedule, n, probe)
            if path:
                write_arrays(path, {"t": t})
        found[name] = Discretization(t, t)
    return found


def _known(path: Path, points: int) -> jax.Array | None:
    """The times in a file; None if there is none, or it is damaged. Of several processes all get the first one's."""
    t, known = np.zeros(points, jnp.result_type(float)), False
    if is_first() and path.exists():
        with contextlib.suppress(ValueError):
            (read,) = read_arrays(path, ["t"])
            t, known = (read.astype(t.dtype), True) if read.shape == t.shape else (t, False)
    t, known = of_first((t, known))
    return jnp.asarray(t) if known else None


def best_hand_made(errors: Errors) -> str:
    """The hand-made grid with the least mean error."""
    return min(GRIDS, key=lambda name: float(errors[name].mean()))


def summary(errors: Errors, astray: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Mean and median of the errors, and the share of samples in another basin."""
    return {
        name: {"mean": float(values.mean()), "median": float(np.median(values)), "another basin": astray[name]}
        for name, values in errors.items()
    }


def figures(compared: Comparison) -> dict[str, dict[str, dict[str, Any]]]:
    """All of a comparison's errors by measure and name: `summary`, 95 % intervals, and the error of each noise."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for measure, errors in compared.errors.items():
        found[measure] = dict(summary(errors, compared.astray))
        for name, values in errors.items():
            ends = {f"{of} interval": interval[1:] for of, interval in _intervals(compared, measure, name).items()}
            found[measure][name] |= ends | {"errors": values.tolist()}
    return found


def _intervals(compared: Comparison, measure: str, name: str) -> dict[str, metrics.Interval]:
    values, far = compared.errors[measure][name], compared.errors[SQUARED_ERROR][name]
    mean = metrics.mean_of_two_kinds(values, far > compared.apart[SQUARED_ERROR] / 4, compared.apart[measure])
    return {"mean": mean, "median": metrics.bootstrap(metrics.median, values)}


def in_another_basin(errors: np.ndarray, targets: np.ndarray, squared_error: Partial) -> float:
    """The share of samples whose squared error exceeds `losses.other_basin`."""
    return float((errors > np.asarray(losses.other_basin(targets, squared_error))).mean())


def print_intervals(compared: Comparison) -> None:
    """Print how sure the means and medians of the squared errors are."""
    best = best_hand_made(compared.errors[SQUARED_ERROR])
    of_best, of_learned = (_intervals(compared, SQUARED_ERROR, name) for name in (best, "learned"))
    for statistic, learned in of_learned.items():
        print(f"{statistic}, with 95 % interval: learned {learned}; {best} {of_best[statistic]}")


def _print_table(errors: Errors, astray: Mapping[str, float], what: str) -> None:
    """The comparison, best first."""
    print(f"\n{what} against the teacher on {len(errors['learned'])} held-out noises:\n")
    width = max(10, *(len(name) + 2 for name in errors))
    print(f"  {'grid':<{width}}{'mean':>11}{'median':>11}{'another basin':>16}{'mean vs learned':>18}")
    for name, values in sorted(errors.items(), key=lambda item: float(item[1].mean())):
        ratio = values.mean() / errors["learned"].mean()
        print(f"  {name:<{width}}{values.mean():>11.5f}{np.median(values):>11.5f}{astray[name]:>16.1%}{ratio:>17.2f}x")
    print(flush=True)
