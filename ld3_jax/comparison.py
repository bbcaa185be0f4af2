"""How samples are judged against the teacher's from the same noise; tables of the learned schedule and other grids."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ld3_jax import losses, metrics, programs, teacher_cache
from ld3_jax.baselines import Probe, baseline
from ld3_jax.batches import to_host
from ld3_jax.disk import digest, read_arrays, write_arrays
from ld3_jax.grids import GRIDS
from ld3_jax.learning import Discretization, Student, kl_bound, on_grid
from ld3_jax.learning.student import losses_in_batches, run_in_batches
from ld3_jax.losses import Loss
from ld3_jax.pretrained import Pretrained
from ld3_jax.processes import is_first, of_first
from ld3_jax.ranges import call
from ld3_jax.teacher import Pairs, Teacher

SQUARED_ERROR = "squared error"


class Judged(NamedTuple):
    """Samples against the teacher's: the first ones, by measure one error for each noise, and the share of samples that
    end in another basin."""

    samples: np.ndarray
    errors: dict[str, np.ndarray]
    another_basin: float

    def summary(self, measure: str = SQUARED_ERROR) -> dict[str, float]:
        """Mean and median of the errors, and the share in another basin."""
        errors = self.errors[measure]
        mean, median = float(errors.mean()), float(np.median(errors))
        return {"mean": mean, "median": median, "another basin": self.another_basin}


def loss_by_name(name: str, model: Pretrained, targets: PyTree) -> Loss:
    """A loss of `losses.LOSSES` for a model and targets (or their shapes); squared error if no loss has this name."""
    entry = losses.LOSSES.get(name, losses.LOSSES["l2"])

    def make(squared_error: Loss, targets: PyTree) -> Loss:
        return losses.as_loss(entry(squared_error, targets))

    return call(make, f"LOSSES[{name!r}] is called as make(squared_error, targets)", model.squared_error, targets)


def shape_of_loss(name: str, model: Pretrained) -> Loss:
    """The shapes of a loss, after checking that its weights are installed and that it accepts the model's samples.

    Raises:
        ImportError: if the package that ships the weights is not installed.
        ValueError: if the loss does not accept the samples.
    """
    samples = model.shapes(2).x_0
    loss = jax.eval_shape(partial(loss_by_name, name, model), samples)
    jax.eval_shape(lambda loss, *both: loss(*both), loss, samples, samples)
    return loss


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges a student's samples on held-out noises: by squared error, and by a loss that has a heading of its own.

    Attributes:
        student: what to run.
        test: held-out pairs.
        measures: by their headings.
        batch_size: the most samples to integrate at a time.
    """

    student: Student
    test: Pairs
    measures: Mapping[str, Loss]
    batch_size: int

    @classmethod
    def of(cls, student: Student, test: Pairs, model: Pretrained, batch_size: int) -> "Judge":
        """A judge by the model's squared error and by the student's loss."""
        loss = student.judged_by
        own = {loss.measure: loss} if loss.measure else {}
        return cls(student, test, {SQUARED_ERROR: model.squared_error, **own}, batch_size)

    def __call__(self, times: Discretization, shown: int | None = 0) -> Judged:
        """The samples on some times; the first `shown` of them are kept, or all."""
        of, size = self.test, self.batch_size
        samples = run_in_batches(self.student, times, of.x_T, of.cond, batch_size=size)
        errors = {
            measure: to_host(losses_in_batches(loss, samples, of.x_0, batch_size=size))
            for measure, loss in self.measures.items()
        }
        another_basin = float((errors[SQUARED_ERROR] > self._other_basin).mean())
        return Judged(to_host(samples[:shown]), errors, another_basin)

    def standard_grids(self) -> dict[str, Discretization]:
        """The standard grids for the student."""
        return {name: on_grid(name, self.student.schedule, self.student.solver) for name in GRIDS}

    @cached_property
    def _other_basin(self) -> np.ndarray:
        return np.asarray(losses.other_basin(self.test.x_0, self.measures[SQUARED_ERROR]))


class Comparison(NamedTuple):
    """What was judged, by name, and each measure's median between targets from different noise."""

    judged: dict[str, Judged]
    apart: dict[str, float]

    @property
    def best_standard(self) -> str:
        """The standard grid with the least mean squared error."""
        return min(GRIDS, key=lambda name: self.judged[name].summary()["mean"])

    def summaries(self, measure: str) -> dict[str, dict[str, float]]:
        """The summary of each by one measure."""
        return {name: one.summary(measure) for name, one in self.judged.items()}

    def intervals(self, measure: str, name: str) -> dict[str, metrics.Interval]:
        """Mean and median with 95 % intervals."""
        values, far = self.judged[name].errors[measure], self.judged[name].errors[SQUARED_ERROR]
        mean = metrics.mean_of_two_kinds(values, far > self.apart[SQUARED_ERROR] / 4, self.apart[measure])
        return {"mean": mean, "median": metrics.bootstrap(metrics.median, values)}

    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All errors by measure and name: summary, 95 % intervals, and the error of each noise."""
        figures: dict[str, dict[str, dict[str, Any]]] = {}
        for measure in self.apart:
            figures[measure] = dict(self.summaries(measure))
            for name, one in self.judged.items():
                ends = {f"{of} interval": interval[1:] for of, interval in self.intervals(measure, name).items()}
                figures[measure][name] |= ends | {"errors": one.errors[measure].tolist()}
        return figures

    def print_intervals(self) -> None:
        """Print how sure the means and medians of the squared errors are."""
        best = self.best_standard
        of_best, of_learned = (self.intervals(SQUARED_ERROR, name) for name in (best, "learned"))
        for statistic, learned in of_learned.items():
            print(f"{statistic}, with 95 % interval: learned {learned}; {best} {of_best[statistic]}")


def compare(judge: Judge, times: Mapping[str, Discretization], title: str, shown: int = 0) -> Comparison:
    """Print how far the learned schedule, other methods' times and the standard grids end from the teacher.

    Args:
        judge: what judges.
        times: what to compare with the standard grids, by name; one is "learned".
        title: the title of the tables.
        shown: how many samples of each to return.
    """
    targets, size = judge.test.x_0, judge.batch_size
    others = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), targets)
    apart = {
        measure: float(np.median(to_host(losses_in_batches(loss, targets, others, batch_size=size))))
        for measure, loss in judge.measures.items()
    }
    judged = {name: judge(one, shown) for name, one in {**times, **judge.standard_grids()}.items()}
    compared = Comparison(judged, apart)
    for measure in judge.measures:
        _print_table(
            compared.summaries(measure), len(jax.tree.leaves(targets)[0]), f"{title}, {judge.student.solver}\n{measure}"
        )
    return compared


def _print_table(rows: Mapping[str, Mapping[str, float]], count: int, what: str) -> None:
    """The comparison, best first."""
    print(f"\n{what} against the teacher on {count} held-out noises:\n")
    width = max(10, *(len(name) + 2 for name in rows))
    print(f"  {'grid':<{width}}{'mean':>11}{'median':>11}{'another basin':>16}{'mean vs learned':>18}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["mean"]):
        *errors, share = row.values()
        ratio, figures = (
            row["mean"] / rows["learned"]["mean"],
            (f"{one:.5f}" if one < 1e4 else f"{one:.5g}" for one in errors),
        )
        print(f"  {name:<{width}}{''.join(f'{one:>11}' for one in figures)}{share:>16.1%}{ratio:>17.2f}x")
    print(flush=True)


def baselines(
    names: Iterable[str], student: Student, probe: Probe, cache: Path | None = None
) -> dict[str, Discretization]:
    """Other methods' times for a student; none on a manifold, where they are not defined.

    Args:
        names: of ld3_jax.baselines.BASELINES.
        student: what runs on them.
        probe: the model with some initial states, for the methods that look at it.
        cache: a folder for their times, because some methods call the network hundreds of times.
    """
    schedule, n = student.schedule, student.solver.n_steps
    if not student.solver.expands(schedule):
        return {}
    of_model, looked_at = (probe.model, schedule, jnp.asarray(schedule.t_max), (probe.x_T, probe.cond)), ""
    if cache and (seen := teacher_cache.program(*of_model)):
        looked_at = f"{seen.digest}-{digest(of_model)}"
        probe = dataclasses.replace(probe, model=programs.marked(probe.model, seen))
    times = {}
    for name in names:
        path = cache / f"{name}-{n}-{looked_at}.npz" if cache and looked_at else None
        t = _known(path, n + 1) if path else None
        if t is None:
            t = baseline(name, schedule, n, probe)
            if path:
                write_arrays(path, {"t": t})
        times[name] = Discretization(t, t)
    return times


def _known(path: Path, points: int) -> jax.Array | None:
    """The times in a file; None if it is missing or damaged. With several processes, all get the first one's."""
    t, known = np.zeros(points, jnp.result_type(float)), False
    if is_first() and path.exists():
        with contextlib.suppress(ValueError):
            (read,) = read_arrays(path, ["t"])
            t, known = (read.astype(t.dtype), True) if read.shape == t.shape else (t, False)
    t, known = of_first((t, known))
    return jnp.asarray(t) if known else None


def check_distances(model: Pretrained, count: int) -> None:
    """Refuse samples that are not images, and fewer samples than features.

    Raises:
        ValueError: it says how many are needed.
    """
    sample = model.shapes(1).x_0
    if len(sample.shape) != 4:
        raise ValueError(f"--distances compares images, and the samples of {model} are not images")
    features = max(extract(np.zeros(sample.shape)).shape[1] for extract in metrics.EXTRACTORS.values())
    if count <= features:
        raise ValueError(f"--distances needs more samples than the {features} features of one, got --num={count}")


def print_distances(samples: Mapping[str, np.ndarray], targets: np.ndarray) -> dict[str, Any]:
    """Print the distances of samples to the teacher's from the same noise, nearest first. Their Frechet distances are
    smaller than from other noise.

    Args:
        samples: images by name.
        targets: the teacher's.

    Returns:
        What is printed, by extractor and name; for KID a value and its interval.
    """
    distances: dict[str, Any] = {}
    width = max(10, *(len(name) + 2 for name in samples))
    for extractor, extract in metrics.EXTRACTORS.items():
        real = extract(targets)
        of_real = metrics.statistics([real])
        features = {name: extract(images) for name, images in samples.items()}
        frechet = {name: metrics.frechet(metrics.statistics([of]), of_real) for name, of in features.items()}
        print(f"\ndistances to the teacher's {len(targets)} samples, of {extractor} ({real.shape[1]} features):\n")
        print(f"  {'grid':<{width}}{'Frechet':>11}{'KID (95 % interval)':>36}{'precision':>11}{'recall':>9}")
        distances[extractor] = {}
        for name in sorted(frechet, key=frechet.__getitem__):
            covered, kid = metrics.precision_recall(real, features[name]), metrics.kid(features[name], real)
            shown = f"{kid!s:>36}{covered.precision:>11.3f}{covered.recall:>9.3f}"
            print(f"  {name:<{width}}{frechet[name]:>11.4g}{shown}")
            distances[extractor][name] = {"frechet": frechet[name], "kid": kid, **covered._asdict()}
    print(flush=True)
    return distances


def print_bound(judge: Judge, times: Discretization, teacher: Teacher) -> dict[str, float] | None:
    """Print and return the densities' distance and LD3's bound on it; None where densities are not defined."""
    try:
        bound = kl_bound(judge.student, times, teacher, judge.test.x_T, judge.test.cond)
    except ValueError as error:
        print(f"no bound on KL(teacher || learned): {error}")
        return None
    print(f"KL(teacher || learned) {bound.kl:.4f} +- {bound.kl_error:.4f} nats, LD3's bound on it {bound.value:.4f}")
    print(
        f"({bound.matched:.1%} of the noises were matched; for {bound.folded:.1%} of those the two determinants have "
        "opposite signs)"
    )
    return bound._asdict()
