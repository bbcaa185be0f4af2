"""Hand-made time grids: their closed forms, ends and order."""

import jax.numpy as jnp
import numpy as np
import pytest
from noise_schedules import SCHEDULES

from ld3_jax import grids

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
    np.testing.assert_array_equal(t[2:-2:2], grids.grid(name, schedule, N)[1:-1])


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match=r"'edm'.*'uniform'.*got 'karras'"):
        grids.grid("karras", SCHEDULES["VELinear"], N)


@pytest.mark.parametrize("n", [0, -3])
def test_a_grid_without_steps_is_refused(n):
    with pytest.raises(ValueError, match=f"at least 1 step, got {n}"):
        grids.grid("uniform", SCHEDULES["VELinear"], n)
