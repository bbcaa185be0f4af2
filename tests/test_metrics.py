"""Distances of distributions: their closed forms, streaming, what they refuse; intervals."""

import re
from pathlib import Path

import numpy as np
import pytest

from ld3_jax import metrics
from ld3_jax.metrics import Statistics
from ld3_jax.networks import inception


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _spd(rng, d):
    root = rng.standard_normal((d, d))
    return root @ root.T / d + 0.1 * np.eye(d)


def test_the_distance_of_gaussians_that_commute_has_its_closed_form(rng):
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 3, (2, 6))
    means = rng.standard_normal((2, 6))
    found = metrics.frechet(Statistics(means[0], basis * a @ basis.T), Statistics(means[1], basis * b @ basis.T))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_distance_is_that_of_published_programs(rng):
    # The trace of the square root of the product, which is not symmetric, as SciPy takes it.
    linalg = pytest.importorskip("scipy.linalg")
    x, y = rng.standard_normal((2000, 20)) @ _spd(rng, 20), rng.standard_normal((2000, 20)) + 0.1
    (mu, sigma), (nu, tau) = ((of.mean(0), np.cov(of, rowvar=False)) for of in (x, y))
    expected = ((mu - nu) ** 2).sum() + np.trace(sigma + tau - 2 * linalg.sqrtm(sigma @ tau).real)
    found = metrics.frechet(metrics.statistics([x]), metrics.statistics([y]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found > 0.1


def test_streaming_is_one_batch(rng):
    features = 1e3 + rng.standard_normal((1000, 7)) @ _spd(rng, 7)
    whole = metrics.statistics([features])
    parts = metrics.statistics(iter(np.split(features.astype(np.float64), [1, 300, 300, 999])))
    assert parts.count == whole.count == 1000
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-10)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-10)
    np.testing.assert_allclose(whole.covariance, np.cov(features, rowvar=False), rtol=1e-8)


def test_fewer_samples_than_features_are_refused(rng):
    few, many = (metrics.statistics([rng.standard_normal((n, 20))]) for n in (20, 21))
    with pytest.raises(ValueError, match=r"20 samples of 20 features: their covariance is singular.*at least 21"):
        metrics.frechet(many, few)
    assert metrics.frechet(many, many) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="got 20 and 3"):
        metrics.frechet(many, metrics.statistics([rng.standard_normal((9, 3))]))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        metrics.statistics([np.zeros((1, 3))])
    with pytest.raises(ValueError, match="finite"):
        metrics.statistics([np.full((3, 3), np.nan)])


def test_reference_statistics_are_edms(rng, tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=rng.standard_normal(4), sigma=_spd(rng, 4))
    read = metrics.read_statistics(path)
    metrics.write_statistics(tmp_path / "again.npz", read)
    with np.load(tmp_path / "again.npz") as again, np.load(path) as first:
        assert set(again) == {"mu", "sigma"}
        assert all(np.array_equal(again[name], first[name]) for name in again)
    assert metrics.frechet(read, metrics.statistics([rng.standard_normal((50, 4))])) > 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "damaged"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got \(3,\) and \(4, 4\)"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "finite"),
    ],
)
def test_damaged_statistics_are_named(arrays, message, tmp_path):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match=rf"reference\.npz.*{message}"):
        metrics.read_statistics(tmp_path / "reference.npz")


def test_kid_of_equal_sets_is_zero_and_of_others_is_not(rng):
    x, y = rng.standard_normal((2, 1000, 8))
    for other in (x, y):
        found = metrics.kid(x, other)
        assert found.low < 0 < found.high
    found = metrics.kid(x, y + 0.3)
    assert found.low > 0
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="at least 2 blocks and 4 samples a block are needed, got 10 of 39 samples"):
        metrics.kid(x[:39], y[:39])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_interval_of_kid_covers_the_truth_in_95_of_100_cases(shift, rng):
    # x and y from the same noise, as a student's samples and its teacher's are.
    x = rng.standard_normal((500, 80, 4))
    found = np.array([metrics.kid(one, one + shift, seed=seed) for seed, one in enumerate(x)])
    truth = found[:, 0].mean() if shift else 0.0
    covered = ((found[:, 1] <= truth) & (truth <= found[:, 2])).mean()
    assert covered == pytest.approx(0.95, abs=0.03)


def test_kid_is_unbiased(rng):
    # Of one dimension the kernel's moments are known: k(x, y) = (x y + 1)^3 has the features 1, x, x^2, x^3.
    x, y = rng.standard_normal((20000, 1)), 0.5 + rng.standard_normal((20000, 1))
    moments = np.array([0.5, 1.25 - 1, 0.5 * (3 + 0.25)])  # differences of the first three
    expected = (np.array([3, 3, 1]) * moments**2).sum()
    found = metrics.kid(x, y, blocks=40)
    assert found.low < expected < found.high
    assert found.high - found.low < 0.5 * expected


def test_precision_and_recall_count_what_is_covered(rng):
    two = np.concatenate([rng.standard_normal((200, 2)), 100 + rng.standard_normal((200, 2))])
    found = metrics.precision_recall(two, rng.standard_normal((300, 2)))
    assert found.precision > 0.9
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert metrics.precision_recall(two, two) == (1, 1)
    with pytest.raises(ValueError, match="less than the 400 and 3 samples, got 3"):
        metrics.precision_recall(two, two[:3])
    line = np.array([[0.0], [1.0], [2.0], [10.0]])  # with k = 1 the radii are 1, 1, 1 and 8
    assert metrics.precision_recall(line, np.array([[1.5], [3.5], [-5.0], [-6.0]]), k=1).precision == 0.5


def test_the_bootstrap_is_paired_and_as_wide_as_theory_says(rng):
    noise = rng.lognormal(size=400)
    found = metrics.bootstrap(metrics.mean, noise)
    assert found.high - found.low == pytest.approx(2 * 1.96 * noise.std() / 20, rel=0.15)
    assert found.low < found.value < found.high
    assert metrics.bootstrap(metrics.median, noise).value == np.median(noise)
    ratio = metrics.bootstrap(lambda a, b: a.mean(-1) / b.mean(-1), 3 * noise, noise)
    np.testing.assert_allclose(ratio, 3)


def test_cheap_extractors_are_means():
    images = np.arange(2 * 20 * 20 * 1.0).reshape(2, 20, 20, 1)
    few = metrics.pixels(images)
    assert few.shape == (2, 36)
    np.testing.assert_allclose(few[0, 0], images[0, :3, :3].mean())
    y, x = np.indices((20, 20)) - 9.5
    radius = np.hypot(x, y).astype(int)
    profile = metrics.radial_profile(np.stack([radius, 0 * radius])[..., None] * 1.0)
    np.testing.assert_allclose(profile, [np.arange(10), np.zeros(10)], atol=1e-12)


def test_the_fid_of_the_documentation_is_computed(rng, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", Path("docs/metrics.md").read_text(), re.DOTALL)
    monkeypatch.setattr(inception, "load", lambda: lambda images: images.mean((1, 2)))
    monkeypatch.chdir(tmp_path)
    images = rng.uniform(-1, 1, (2, 10, 4, 4, 3)).astype(np.float32)
    (tmp_path / "runs/cifar10/many").mkdir(parents=True)
    for i, batch in enumerate(images):
        np.savez(tmp_path / f"runs/cifar10/many/{10 * i:08d}.npz", samples=batch)
    reference = metrics.statistics([rng.standard_normal((30, 3))])
    metrics.write_statistics(tmp_path / "cifar10-32x32.npz", reference)
    names = {}
    exec(compile(snippet, "docs/metrics.md", "exec"), names)
    expected = metrics.frechet(metrics.statistics([images.mean((2, 3)).reshape(20, 3)]), reference)
    assert names["fid"] == pytest.approx(expected, rel=1e-4)
