"""Times interpolated between learned ones for several numbers of calls."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

import ld3_jax
from ld3_jax import learning, schedules
from ld3_jax.learning import Coefficients, Discretization, Gaps, Learned
from ld3_jax.solvers import Solver

GOLDEN = Path(__file__).parent / "golden"
SCHEDULE = schedules.VPLinear()


def learned_for(nfe, name="dpmpp", size=1.0, **more):
    """Random times."""
    solver, key = Solver(name, nfe, 2), jax.random.key(nfe)
    start = Gaps().init(learning.on_grid("logsnr", SCHEDULE, solver), SCHEDULE, solver)
    numbers = jax.tree.map(lambda leaf: leaf + size * jax.random.normal(key, leaf.shape), start)
    times = Gaps().discretization(Gaps().project(numbers, SCHEDULE), SCHEDULE, solver)._replace(**more)
    return Learned(solver, times, np.asarray(SCHEDULE.lam(times.t)), {"digest": "one"}, {"loss": "l2", "valid": {}})


def lam(learned):
    return np.asarray(SCHEDULE.lam(learned.t))


def test_a_number_of_calls_that_was_learned_is_as_it_is():
    few, many = learned_for(3), learned_for(6)
    assert ld3_jax.interpolate([few, many], 6, SCHEDULE) is many


@pytest.mark.parametrize("n", [2, 4, 5, 12, 50])
def test_times_descend_between_exact_ends(n):
    found = ld3_jax.interpolate([learned_for(3, size=1.5), learned_for(6, size=1.5)], n, SCHEDULE)
    assert found.solver == Solver("dpmpp", n, 2)
    assert found.losses == {"loss": "l2"}
    found.check_range(SCHEDULE)
    for times in (found.t, found.t_c):
        assert len(times) == n + 1
        assert (np.diff(times) < 0).all()
        assert (float(times[0]), float(times[-1])) == (np.float32(SCHEDULE.t_max), np.float32(SCHEDULE.t_min))
    assert np.abs(found.t - found.t_c).max() > 1e-4


def test_between_two_numbers_of_calls_the_times_are_those_of_scipys_interpolation(float64):
    known = [learned_for(3), learned_for(6)]
    at = [PchipInterpolator(np.arange(len(one)) / (len(one) - 1), one)(np.arange(5) / 4) for one in map(lam, known)]
    expected = (at[0] + at[1]) / 2  # 1 / 4 is half way between 1 / 3 and 1 / 6
    np.testing.assert_allclose(lam(ld3_jax.interpolate(known, 4, SCHEDULE)), expected, rtol=1e-8)


@pytest.mark.parametrize(("n", "nearest"), [(2, 3), (12, 6)])
def test_beyond_the_learned_numbers_the_nearest_counts(n, nearest, float64):
    known = {nfe: learned_for(nfe) for nfe in (3, 6)}
    points = PchipInterpolator(np.arange(nearest + 1) / nearest, lam(known[nearest]))
    found = ld3_jax.interpolate(list(known.values()), n, SCHEDULE)
    np.testing.assert_allclose(lam(found), points(np.arange(n + 1) / n), rtol=1e-8)


@pytest.mark.parametrize("n", [5, 7])
def test_two_calls_a_step_count_as_one_step(n):
    known = [learned_for(4, "heun"), learned_for(8, "heun")]
    assert len(ld3_jax.interpolate(known, n, SCHEDULE).t) == (n + 1) // 2 + 1


CHANGE = Coefficients(jnp.zeros(4), jnp.zeros((4, 4)))
FEW = learned_for(3)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([FEW], r"between those learned for two other numbers or more, got those for \[3\]"),
        ([], r"got those for \[\]"),
        ([FEW, learned_for(6, "ipndm")], "for one solver and one model, got 2 kinds"),
        ([FEW, replace(learned_for(6), model={"digest": "another"})], "for one solver and one model, got 2 kinds"),
        ([FEW, FEW], r"between different numbers of calls, got \[3, 3\]"),
        ([FEW, learned_for(5), learned_for(5, "ipndm")], "for one solver and one model, got 2 kinds"),
        ([FEW, learned_for(4, coefficients=CHANGE)], "these have coefficients"),
        ([FEW, replace(learned_for(6), lam=lam(learned_for(6)) + 1)], "learned for another noise schedule"),
    ],
)
def test_what_does_not_belong_together_is_refused(known, message):
    with pytest.raises(ValueError, match=message):
        ld3_jax.interpolate(known, 5, SCHEDULE)


def test_too_few_calls_for_the_solver_are_refused():
    with pytest.raises(ValueError, match="of order 2 needs an integer nfe of at least 2, got 1"):
        ld3_jax.interpolate([FEW, learned_for(6)], 1, SCHEDULE)


def test_the_curve_of_an_earlier_file_is_several():
    several = learning.load_several(GOLDEN / "schedule_v5_curve.json", SCHEDULE)
    assert [one.solver.nfe for one in several] == [4, 6, 8, 10]
    for one in several:
        one.check_range(SCHEDULE)
    with pytest.raises(ValueError, match="another noise schedule"):
        learning.load_several(GOLDEN / "schedule_v5_curve.json", schedules.VPLinear(beta_1=5.0))
    assert isinstance(several[0].discretization, Discretization)
