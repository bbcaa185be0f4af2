"""Standard time grids: their closed forms, ends and order."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noise_schedules import SCHEDULES

from ld3_jax import grids, schedules

N = 6
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_grid = pytest.mark.parametrize("name", sorted(grids.GRIDS))


@every_schedule
@every_grid
@pytest.mark.parametrize("n", [1, N])
def test_grids_descend_between_exact_ends(name, schedule, n):
    t = grids.grid(name, schedule, n)
    assert t.shape == (n + 1,)
    assert np.all(np.diff(t) < 0)
    np.testing.assert_array_equal(t[jnp.asarray([0, -1])], np.float32([schedule.t_max, schedule.t_min]))


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("uniform", np.linspace(80, 0.002, N + 1)),
        ("quadratic", 0.002 + 79.998 * np.linspace(1, 0, N + 1) ** 2),
        ("logsnr", np.geomspace(80, 0.002, N + 1)),
        ("edm", np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), N + 1) ** 7),
    ],
)
def test_grids_on_ve_linear_have_their_closed_form(name, closed_form, float64):
    np.testing.assert_allclose(grids.grid(name, SCHEDULES["VELinear"], N), closed_form, rtol=1e-12)


@pytest.mark.parametrize("name", ["VPLinear", "RectifiedFlow"])
def test_logsnr_is_even_in_lam_and_edm_in_its_seventh_root(name, float64):
    schedule = SCHEDULES[name]
    logsnr, edm = (schedule.lam(grids.grid(grid, schedule, N)) for grid in ("logsnr", "edm"))
    np.testing.assert_allclose(np.diff(logsnr, 2), 0, atol=1e-10)
    np.testing.assert_allclose(np.diff(np.exp(-edm / 7), 2), 0, atol=1e-10)


@every_schedule
@every_grid
def test_a_grid_can_be_read_off_anywhere(name, schedule):
    # The grid's own points, and one between each two of them.
    t = grids.GRIDS[name](schedule, jnp.linspace(0.0, 1.0, 2 * N + 1))
    assert np.all(np.diff(t) < 0)
    np.testing.assert_allclose(t[2:-2:2], grids.grid(name, schedule, N)[1:-1], rtol=1e-6)


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match=r"'edm'.*'uniform'.*got 'karras'"):
        grids.grid("karras", SCHEDULES["VELinear"], N)


@pytest.mark.parametrize("n", [0, -3])
def test_a_grid_without_steps_is_refused(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        grids.grid("uniform", SCHEDULES["VELinear"], n)


@dataclass(frozen=True)
class _Straight(schedules.NoiseSchedule):
    """Rectified flow as one writes it by hand; lam is infinite at t = 0 and t = 1."""

    t_min: float = 0.0
    t_max: float = 1.0

    def log_alpha(self, t):
        return jnp.log1p(-t)

    def log_sigma(self, t):
        return jnp.log(t)

    def inverse_lam(self, lam):
        return jax.nn.sigmoid(-lam)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((0.0, 1.0), "finite and grow from t_max to t_min, got -inf at 1.0 and inf at 0.0"),
        ((0.5, 0.1), "finite and grow"),
    ],
)
def test_a_noise_schedule_without_a_finite_lam_at_its_ends_is_refused(ends, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda: grids.grid("logsnr", _Straight(*ends), N))()
    assert np.isfinite(grids.grid("logsnr", _Straight(1e-3, 0.999), N)).all()


def test_times_that_are_not_finite_or_stand_still_are_refused():
    with pytest.raises(ValueError, match=r"the grid 'edm' of VPLinear\(.*\) must descend, got \[1.0, nan"):
        grids.grid("edm", schedules.VPLinear(beta_1=1e5), 4)
    with pytest.raises(ValueError, match=r"the times of 'dmn' for .* must descend"):
        grids.check_descent(jnp.asarray([1.0, 0.5, 0.5]), "the times of 'dmn' for", "it")
