"""Other methods' grids: their optima found again by force, and what they are on a network."""

from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from noise_schedules import SCHEDULES

from ld3_jax import baselines, comparison, poses, schedules
from ld3_jax.baselines import Probe, baseline
from ld3_jax.learning import make_student
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver, sample

VP = schedules.VPLinear()


@pytest.fixture(scope="module")
def probe():
    """Eight states of a Gaussian mixture, three at a time; its grids are compared with all eight at a time."""
    x_T = jax.random.normal(jax.random.key(0), (8, 2))
    return Probe(gaussian.noise_model(gaussian.ring(), VP), x_T, batch_size=3)


@pytest.fixture(scope="module")
def path(probe):
    return baselines.trajectory(VP, probe, 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_dmn_descends_between_exact_ends(name):
    t = baseline("dmn", SCHEDULES[name], 4)
    assert t.shape == (5,)
    assert np.all(np.diff(t) < 0)
    np.testing.assert_array_equal(t[jnp.asarray([0, -1])], np.float32([SCHEDULES[name].t_max, SCHEDULES[name].t_min]))


def test_dmns_bound_is_the_sum_of_the_integrals_it_stands_for():
    # The integrals of e^lam times the polynomials of Lagrange, by quadrature, for a grid with shared predictions.
    lam = np.array([-4.0, -2.9, -1.1, -0.3, 0.2, 1.4, 3.0])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    n, each = 6, np.zeros((6, 6))
    for s, order in enumerate([1, 2, 3, 3, 2, 1]):
        at = lam[s] + (nodes + 1) / 2 * (lam[s + 1] - lam[s])
        for j in range(s - order + 1, s + 1):
            others = [i for i in range(s - order + 1, s + 1) if i != j]
            polynomial = np.prod([(at - lam[i]) / (lam[j] - lam[i]) for i in others], 0)
            integral = (weights * np.exp(at) * polynomial).sum() * (lam[s + 1] - lam[s]) / 2
            variance = 1 / (1 + np.exp(2 * lam[j]))
            each[s, j] = integral * variance / np.sqrt(1 - variance)
    alone = [0, 1, 2, n - 1]
    expected = np.linalg.norm(each[alone], axis=1).sum() + np.abs(each[[3, 4]].sum(0)).sum()
    np.testing.assert_allclose(baselines.dmn_bound(lam), expected, rtol=1e-12)


def test_dmn_is_the_optimum_of_a_search_over_all_times():
    first, last = map(float, VP.lam(jnp.asarray([VP.t_max, VP.t_min])))
    low, high, best = np.array([first, first]), np.array([last, last]), None
    for _ in range(7):  # finer and finer around the best
        a, b = np.meshgrid(*np.linspace(low, high, 61).T, indexing="ij")
        inside = (first < a) & (a < b) & (b < last)
        grids = np.stack([0 * a[inside] + first, a[inside], b[inside], 0 * a[inside] + last], -1)
        best = grids[np.argmin(baselines.dmn_bound(grids))]
        width = (high - low) / 12
        low, high = best[1:3] - width, best[1:3] + width
    np.testing.assert_allclose(VP.lam(baseline("dmn", VP, 3)), best, atol=1e-3)


def test_gits_is_the_optimum_of_a_search_over_all_points(probe, path):
    s, y, eps = (np.asarray(values, np.float64) for values in (path.s, path.y, path.eps))

    def deviation(point, b):  # the height of a triangle, from its area by Gram's determinant
        ends, rest = y[0, b] - y[-1, b], point - y[-1, b]
        return np.sqrt(max((ends @ ends) * (rest @ rest) - (ends @ rest) ** 2, 0)) / np.linalg.norm(ends)

    def cost(i, j):
        return np.mean([deviation(y[i, b] + (s[j] - s[i]) * eps[i, b], b) - deviation(y[j, b], b) for b in range(8)])

    costs = {(i, j): cost(i, j) for i, j in combinations(range(len(s)), 2)}

    def total(middle):
        i, j = middle
        return costs[0, i] + 1.15 * (costs[i, j] + 1.15 * costs[j, len(s) - 1])

    i, j = min(combinations(range(1, len(s) - 1), 2), key=total)
    t = baseline("gits", VP, 3, probe)
    np.testing.assert_allclose(t, path.t[jnp.asarray([0, i, j, -1])], atol=1e-3)


def test_optimal_steps_takes_the_euler_path_that_ends_nearest(probe, path):
    times = path.t[jnp.asarray([[0, i, 60] for i in range(1, 60)])]
    ends = jax.jit(jax.vmap(lambda t: sample(probe.model, VP, probe.x_T, t, solver="ddim")))(times)
    far = ((np.asarray(ends / VP.alpha(path.t[-1])) - np.asarray(path.y[-1])) ** 2).sum(-1)
    best = np.sort(1 + far.argmin(0))
    t = baseline("oss", VP, 2, probe)
    np.testing.assert_allclose(t[1], path.t[(best[3] + best[4]) // 2], rtol=1e-6)


@pytest.mark.parametrize("name", baselines.OF_MODEL)
def test_grids_of_a_model_descend(name, probe):
    assert np.all(np.diff(baseline(name, VP, 6, probe)) < 0)
    np.testing.assert_array_equal(baseline(name, VP, 1, probe), np.float32([VP.t_max, VP.t_min]))


@pytest.mark.parametrize("name", baselines.OF_MODEL)
def test_no_more_states_than_asked_for_are_at_the_network_at_a_time(name, probe):
    seen = set()

    def watched(model, x, t, cond=None):
        seen.add(x.shape)
        return model(x, t, cond)

    baseline(name, VP, 1, replace(probe, model=Partial(watched, probe.model)))
    assert seen == {(3, 2)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \['dmn', 'gits', 'oss'\], got 'ays'"):
        baseline("ays", VP, 5)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        baseline("dmn", VP, 0)
    with pytest.raises(ValueError, match="'gits' looks at the model: it needs a probe"):
        baseline("gits", VP, 5)
    with pytest.raises(ValueError, match="is for states that are vectors"):
        baseline("dmn", poses.PoseNoise(), 5)


def test_times_of_another_model_lie_elsewhere(probe, tmp_path, monkeypatch, caplog):
    made, scale = [], [1.0]
    monkeypatch.setattr(comparison, "baseline", lambda *_: made.append(scale[0]) or jnp.linspace(1.0, 0.1, 3))

    def changing(x, t, cond=None):
        return scale[0] * x

    def host(x, t, cond=None):
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    student = make_student(probe.model, VP, Solver("ddim", 2))
    for scale[0] in (1.0, 2.0, 1.0, 2.0):
        comparison.baselines(["gits"], student, replace(probe, model=Partial(changing)), tmp_path)
    assert made == [1.0, 2.0]
    assert not caplog.records
    for _ in range(2):
        comparison.baselines(["gits"], student, replace(probe, model=Partial(host)), tmp_path)
    assert len(made) == 4
    assert caplog.text.count("nothing is cached") == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        (0.0, ValueError, "the model predicts no noise"),
        (jnp.nan, FloatingPointError, "the model's predictions: 8 of 8 are not finite"),
    ],
)
def test_a_model_that_predicts_nothing_is_refused(factor, error, message, probe):
    network = Partial(_times, factor)
    with pytest.raises(error, match=message):
        baseline("gits", VP, 3, replace(probe, model=network))


def _times(factor, x, t, cond):
    return factor * x
