"""Distances between distributions of samples, and confidence intervals for figures from few samples.

Features are rows of numbers, one for each sample, from any extractor. Arithmetic is NumPy's, in double precision.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from ld3_jax.disk import read_arrays, write_arrays

_ROWS = 1000  # of a matrix of distances that is held at a time
_DRAWN = 2**20  # numbers that the bootstrap holds at a time


@dataclass(frozen=True)
class Statistics:
    """What the Frechet distance needs of a distribution of features.

    Attributes:
        mean: the mean of the features.
        covariance: the covariance of the features, divided by count - 1.
        count: the number of samples; None where a file does not say.
    """

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None = None


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def statistics(batches: Iterable[Num[np.ndarray, "_ d"]]) -> Statistics:
    """Mean and covariance of features in batches, in memory that does not grow with the number of batches.

    Args:
        batches: arrays (n_i, d), of any sizes.

    Raises:
        ValueError: if there are fewer than two samples, or features that are not finite.

    Reference: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979.
    """
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        batch = np.asarray(batch, np.float64)
        _check_features(batch)
        if not len(batch):
            continue
        own = batch.mean(0)
        centred, shift, total = batch - own, own - mean, count + len(batch)
        scatter = scatter + centred.T @ centred + np.outer(shift, shift) * (count * len(batch) / total)
        mean, count = mean + shift * (len(batch) / total), total
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {count}")
    return Statistics(mean, scatter / (count - 1), count)


def frechet(a: Statistics, b: Statistics) -> float:
    """The squared Frechet distance of two Gaussians, |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)). For Inception's
    features it is the FID.

    It grows as the number of samples falls, so compare only distances from equal numbers of samples.

    Raises:
        ValueError: if the numbers of features differ, there are no more samples than features, or there is no
            covariance.

    Reference: Heusel et al., arXiv:1706.08500; Dowson and Landau, "The Frechet distance between multivariate normal
    distributions", 1982.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of one kind are compared, got {len(a.mean)} and {len(b.mean)} of them")
    for count in (a.count, b.count):
        if count is not None and count <= len(a.mean):
            raise ValueError(
                f"{count} samples of {len(a.mean)} features: their covariance is singular, and the distance says more "
                f"of their number than of them; at least {len(a.mean) + 1} samples are needed, or fewer features"
            )
    _check_covariance(b.covariance)
    values, vectors = _check_covariance(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    # A B has the eigenvalues of the symmetric root^T B root.
    product = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + trace)


def write_statistics(path: Path, of: Statistics) -> None:
    """Write reference statistics as EDM does: a .npz with `mu` and `sigma`, the covariance.

    Raises:
        OSError: if it cannot be written to the disk.
    """
    write_arrays(path, {"mu": of.mean, "sigma": of.covariance})


def read_statistics(path: Path) -> Statistics:
    """Read reference statistics that EDM's or StyleGAN3's programs, or `write_statistics`, wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or lacks a mean and a covariance.
    """
    try:
        mean, covariance = read_arrays(path, ("mu", "sigma"))
    except ValueError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        raise ValueError(
            f"{path}: holds no mu and sigma; of a data set's own images give the unpacked folder"
        ) from error
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"{path}: mu (d,) and sigma (d, d) are expected, got {mean.shape} and {covariance.shape}")
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (mean, covariance)):
        raise ValueError(f"{path}: mu and sigma must be finite numbers")
    _check_covariance(covariance, f"{path}: sigma")
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64))


def kid(x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "m d"], *, blocks: int = 10, seed: int = 0) -> Interval:
    """The kernel distance (KID): the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3.

    Each estimate compares a block of x with a block of y, and no two blocks share an index, so that no noise is used
    twice where x and y are from the same noise: the estimates are independent and unbiased, and may be negative. The
    interval is Student's of their mean.

    Args:
        x: features.
        y: features of what they are compared with.
        blocks: how many estimates, at least 2.
        seed: of the division into blocks.

    Raises:
        ValueError: if there are fewer than 2 blocks, a block of x or y would hold fewer than 2 samples, or features are
            not finite.

    Reference: Binkowski et al., arXiv:1801.01401; Zaremba et al., arXiv:1307.1954, for blocks.
    """
    from scipy import stats

    _check_features(x, y)
    count = min(len(x), len(y))
    size = count // (2 * blocks)
    if blocks < 2 or size < 2:
        raise ValueError(f"at least 2 blocks and 4 samples a block are needed, got {blocks} of {count} samples")
    order = np.random.default_rng(seed).permutation(count)[: 2 * blocks * size].reshape(2, blocks, size)
    each = [_discrepancy(x[of_x], y[of_y]) for of_x, of_y in zip(*order, strict=True)]
    margin = stats.t.ppf(0.975, blocks - 1) * np.std(each, ddof=1) / np.sqrt(blocks)
    return Interval(float(np.mean(each)), float(np.mean(each) - margin), float(np.mean(each) + margin))


class PrecisionRecall(NamedTuple):
    """The share of samples that look real, and the share of what is real that samples cover."""

    precision: float
    recall: float


def precision_recall(real: Num[np.ndarray, "n d"], samples: Num[np.ndarray, "m d"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    A set covers a point that is at most as far from one of its members as that member's k-th neighbour in the set.
    Precision is the share of samples that `real` covers, recall the share of `real` that the samples cover. Distances
    that are equal up to rounding are equal.

    Raises:
        ValueError: if a set has no k-th neighbours, or features are not finite.

    Reference: Kynkaanniemi et al., arXiv:1904.06991.
    """
    _check_features(real, samples)
    if not 1 <= k < min(len(real), len(samples)):
        raise ValueError(f"k must be from 1 to less than the {len(real)} and {len(samples)} samples, got {k}")
    return PrecisionRecall(_covered(real, samples, k), _covered(samples, real, k))


def bootstrap(statistic: Callable, *values: Num[np.ndarray, "n"], resamples: int = 2000, seed: int = 0) -> Interval:
    """A statistic with its 95 % percentile bootstrap interval.

    Args:
        statistic: a function of arrays with samples along the last axis; it reduces that axis, as `np.mean` with
            axis=-1.
        *values: one number for each sample; the same samples are drawn from several arrays, so that values measured on
            the same noise stay paired: `bootstrap(lambda a, b: a.mean(-1) / b.mean(-1), a, b)`.
        resamples: how many.
        seed: the seed of the draws.

    Raises:
        ValueError: if there is no sample, or the lengths of the values differ.
    """
    values = tuple(np.asarray(value, np.float64) for value in values)
    if len({value.shape for value in values}) != 1 or values[0].ndim != 1 or not values[0].size:
        raise ValueError(
            f"values must be one number for each sample, of the same samples, got {list(map(np.shape, values))}"
        )
    rng, count = np.random.default_rng(seed), len(values[0])
    rows, found = max(1, _DRAWN // count), []
    for done in range(0, resamples, rows):
        drawn = rng.integers(0, count, (min(rows, resamples - done), count))
        found.append(statistic(*(value[drawn] for value in values)))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return Interval(float(statistic(*values)), float(low), float(high))


def share(hits: Bool[np.ndarray, "n"]) -> Interval:
    """How many of the samples, with Wilson's interval.

    Reference: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    count, value, z = len(hits), float(np.mean(hits)), 1.96
    centre = (value + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
    return Interval(value, max(0.0, centre - half), min(1.0, centre + half))


def mean_of_two_kinds(values: Num[np.ndarray, "n"], rare: Bool[np.ndarray, "n"], typical: float) -> Interval:
    """The mean of errors if a rare kind is many times larger, with a 95 % interval.

    Resampling knows nothing about rare errors that were not drawn. With p the share of the rare kind, in Wilson's
    interval, m_1 and m_2 the mean errors of both kinds, s the standard error within them,
        high = mean + sqrt((p_high - p)^2 (m_2 - m_1)^2 + (1.96 s)^2), and low likewise.

    Args:
        values: errors, not negative.
        rare: which of them are of the rare kind.
        typical: a known error of the rare kind, one more in m_2.

    Reference: Zou and Donner, Stat. Med. 27 (2008), for the sum of squares.
    """
    values, rare = np.asarray(values, np.float64), np.asarray(rare, bool)
    if values.shape != rare.shape or not values.size:
        raise ValueError(f"values and rare must be of the same samples, got {values.shape} and {rare.shape}")
    p = share(rare)
    common = values[~rare].sum() / max(1, (~rare).sum())
    large = (values[rare].sum() + typical) / (rare.sum() + 1)
    within = 1.96 * np.linalg.norm(values - np.where(rare, large, common)) / len(values)
    down, up = (math.hypot((end - p.value) * (large - common), within) for end in p[1:])
    return Interval(float(values.mean()), max(0.0, float(values.mean()) - down), float(values.mean()) + up)


def mean(values: Num[np.ndarray, "*s n"]) -> Float[np.ndarray, "*s"]:
    """The mean over the last axis."""
    return np.asarray(values.mean(-1))


def median(values: Num[np.ndarray, "*s n"]) -> Float[np.ndarray, "*s"]:
    """The median over the last axis."""
    return np.asarray(np.median(values, -1))


def pixels(images: Num[np.ndarray, "n h w channels"], side: int = 8) -> Float[np.ndarray, "n _"]:
    """Pixels averaged over squares, so that at most `side` x `side` are left: a cheap extractor."""
    n, h, w, channels = images.shape
    rows, columns = -(-h // side), -(-w // side)
    images = np.asarray(images, np.float64)[:, : h // rows * rows, : w // columns * columns]
    return images.reshape(n, h // rows, rows, w // columns, columns, channels).mean((2, 4)).reshape(n, -1)


def radial_profile(images: Num[np.ndarray, "n h w channels"]) -> Float[np.ndarray, "n _"]:
    """Mean over rings one pixel wide around the centre, out to the nearest edge: a cheap extractor of round objects."""
    n, h, w, channels = images.shape
    y, x = np.indices((h, w))
    ring = np.hypot(y - (h - 1) / 2, x - (w - 1) / 2).astype(int).ravel()
    inside = ring < min(h, w) // 2
    one_hot = np.eye(ring[inside].max() + 1)[ring[inside]]
    flat = np.asarray(images, np.float64).reshape(n, h * w, channels)[:, inside]
    return np.einsum("npc,pr->nrc", flat, one_hot / one_hot.sum(0)).reshape(n, -1)


# Extractors that need no weights; distances of their features do not compare with published ones.
EXTRACTORS = {"pixels": pixels, "radial profiles": radial_profile}


def _check_features(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("features must be finite")
    shapes = [np.shape(array) for array in arrays]
    if any(len(shape) != 2 or not shape[1] or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"features must be arrays (samples, features) of the same features, got {shapes}")


def _check_covariance(covariance: np.ndarray, what: str = "a covariance") -> tuple[np.ndarray, np.ndarray]:
    """Its eigenvalues and eigenvectors."""
    scale = 1e-4 * np.abs(covariance).max()  # more than rounding to float32
    if np.abs(covariance - covariance.T).max() <= scale:
        values, vectors = np.linalg.eigh(covariance)
        if values[0] >= -1e-4 * values[-1]:
            return values, vectors
    raise ValueError(f"{what} must be finite and symmetric, without negative eigenvalues")


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of equal size."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    m = len(x)
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return ((xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))) / (m * (m - 1)) - 2 * xy.mean()


def _covered(by: np.ndarray, points: np.ndarray, k: int) -> float:
    """The share of points that a set covers."""
    radii = [np.partition(far, k, axis=1)[:, k] for far in _square_distances(by, by)]  # the nearest is itself
    radii = np.concatenate(radii) + 1e-10 * np.square(by - by.mean(0)).sum(1).max()  # more than rounding
    return float(np.concatenate([(far <= radii).any(1) for far in _square_distances(points, by)]).mean())


def _square_distances(a: np.ndarray, b: np.ndarray) -> Iterable[np.ndarray]:
    """Squared distances from each row of a to all of b, some rows at a time."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    centre = b.mean(0)
    a, b = a - centre, b - centre
    for i in range(0, len(a), _ROWS):
        part = a[i : i + _ROWS]
        yield np.maximum((part**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * part @ b.T, 0)
