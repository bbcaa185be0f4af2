"""Distances of distributions: their closed forms, streaming, what they refuse; intervals."""

import inspect

import numpy as np
import pytest

from ld3_jax import metrics
from ld3_jax.metrics import Statistics


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
        ({"mu": np.zeros(3)}, "holds no mu and sigma; of a data set's own images give the unpacked folder"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma must be finite and symmetric, without negative"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "sigma must be"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got \(3,\) and \(4, 4\)"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "finite"),
    ],
)
def test_damaged_statistics_are_named(arrays, message, tmp_path):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match=rf"reference\.npz.*{message}"):
        metrics.read_statistics(tmp_path / "reference.npz")


@pytest.mark.parametrize("bad", [np.diag([1.0, -1e-3, 1]), np.eye(3)[::-1] + 1, np.eye(3) * np.nan, np.eye(3, k=1)])
def test_what_is_no_covariance_has_no_distance(bad):
    good, odd = Statistics(np.zeros(3), np.eye(3)), Statistics(np.zeros(3), bad)
    for pair in ((good, odd), (odd, good)):
        with pytest.raises(ValueError, match="a covariance must be finite and symmetric, without negative eigenvalues"):
            metrics.frechet(*pair)
    # Covariances of dependent features, rounded to float32, are accepted.
    flat = np.cov(np.random.default_rng(0).standard_normal((50, 8)) @ np.ones((8, 30)), rowvar=False).astype(np.float32)
    assert metrics.frechet(Statistics(np.zeros(30), flat), Statistics(np.zeros(30), flat)) == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("of", [metrics.kid, metrics.precision_recall])
def test_features_that_are_not_finite_are_refused(of, rng):
    x = rng.standard_normal((50, 3))
    y = np.where(np.eye(50, 3, dtype=bool), np.nan, x)
    for pair in ((x, y), (y, x)):
        with pytest.raises(ValueError, match="features must be finite"):
            of(*pair)


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
    # In one dimension the kernel's moments are known: k(x, y) = (x y + 1)^3 has the features 1, x, x^2, x^3.
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


def test_equal_distances_are_covered(rng):
    for scale in (1, 0.1, 1e3):
        x, y = rng.integers(0, 4, (2, 60, 12))
        apart = [((a[:, None] - b[None]) ** 2).sum(-1) for a, b in ((x, x), (y, y), (y, x))]
        radii = [np.sort(own, 1)[:, 3] for own in apart[:2]]
        exact = (apart[2] <= radii[0]).any(1).mean(), (radii[1] >= apart[2].T).any(1).mean()
        assert metrics.precision_recall(scale * x + 7, scale * y + 7) == exact


def test_the_bootstrap_holds_few_draws_at_a_time_and_draws_the_same(rng, monkeypatch):
    values, sizes = rng.lognormal(size=(2, 300)), []

    def ratio(a, b):
        sizes.append(a.size)
        return a.mean(-1) / b.mean(-1)

    whole = metrics.bootstrap(ratio, *values)
    monkeypatch.setattr(metrics, "_DRAWN", 7000)
    assert metrics.bootstrap(ratio, *values) == whole
    assert max(sizes[2:]) <= 7000


@pytest.mark.parametrize(("count", "typical"), [(100, 100.0), (100, 50.0), (200, 100.0), (1000, 100.0)])
def test_the_interval_of_a_mean_covers_it_where_one_error_in_a_hundred_is_large(count, typical, rng):
    rare = rng.random((2000, count)) < 0.01
    errors = np.where(rare, 100 * rng.lognormal(0, 0.5, rare.shape), rng.lognormal(0, 1, rare.shape))
    truth = 0.99 * np.exp(0.5) + np.exp(0.125)
    found = np.array([metrics.mean_of_two_kinds(*one, typical) for one in zip(errors, rare, strict=True)])
    np.testing.assert_allclose(found[:, 0], errors.mean(1))
    assert 0.93 < ((found[:, 1] <= truth) & (truth <= found[:, 2])).mean() < 0.995
    assert np.median(found[:, 2] - found[:, 1]) < 3 * 2 * 1.96 * errors.std() / np.sqrt(count)


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


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (metrics.bootstrap, (lambda a, b: a.mean(-1) / b.mean(-1), np.ones(5), np.ones(6)), "same samples"),
        (metrics.bootstrap, (metrics.mean, []), "same samples"),
        (metrics.mean_of_two_kinds, (np.ones(5), np.ones(4, bool), 1.0), "same samples"),
        (metrics.statistics, ([np.ones(5)],), "samples, features"),
        (metrics.precision_recall, (np.ones((5, 2)), np.ones((5, 3))), "same features"),
    ],
)
def test_values_of_other_samples_or_features_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*arguments)  # as where types are not checked


def test_kinds_may_be_counted_by_numbers():
    values, mean = np.asarray([1.0, 2.0, 9.0]), inspect.unwrap(metrics.mean_of_two_kinds)
    assert mean(values, np.asarray([0, 0, 1]), 9.0) == mean(values, values > 5, 9.0)
