"""Published grids: their own numbers at their own n, even in the logarithm between them, on their own noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noise_schedules import SCHEDULES

from ld3_jax.grids import grid
from ld3_jax.networks.latent import scaled_linear
from ld3_jax.published import PUBLISHED, Levels
from ld3_jax.schedules import RectifiedFlow, VELinear

SD = scaled_linear(0.00085, 0.012)
OF = {"ays-svd": VELinear(0.002, 700.0), "optimal-flux": RectifiedFlow(), "optimal-wan": RectifiedFlow()}


def levels_of(schedule, t, flow):
    return schedule.sigma(t) / (1 if flow else schedule.alpha(t))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_grid_has_its_own_numbers(name):
    published, schedule = PUBLISHED[name], OF.get(name, SD)
    t = jax.jit(lambda: grid(name, schedule, len(published.values) - 1))()
    given = levels_of(schedule, t, published.flow)
    np.testing.assert_allclose(given[1:-1], published.values[1:-1], rtol=1e-4)
    np.testing.assert_allclose(given[jnp.asarray([0, -1])], [published.values[i] for i in (0, -1)], rtol=0.01)
    assert "arXiv:" in published.source


@pytest.mark.parametrize("name", ["ays-sd15", "optimal-flux"])
def test_other_numbers_of_steps_are_read_off_between(name):
    published, schedule = PUBLISHED[name], OF.get(name, SD)
    given = levels_of(schedule, grid(name, schedule, 20), published.flow)
    expected = np.sqrt(np.multiply(published.values[2:-1], published.values[1:-2]))
    np.testing.assert_allclose(given[3:-3:2], expected, rtol=1e-4)
    assert (np.diff(grid(name, schedule, 33)) < 0).all()


@pytest.mark.parametrize(
    "levels",
    [
        (14.61464119, 5.85520077, 1.91321158, 0.83188516, 0.34370604, 0.02916753),
        (14.61464119, 6.77309084, 3.07277966, 1.91321158, 1.24153244, 0.803307, 0.52423614, 0.34370604, 0.19894916,
         0.09824532, 0.02916753),
        (14.61464119, 7.49001646, 4.86714602, 3.1956799, 2.45070267, 1.84880662, 1.41535246, 1.12534678, 0.89115214,
         0.72133851, 0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.19894916, 0.17026083,
         0.13792117, 0.09824532, 0.02916753),
    ],
    ids=len,
)  # fmt: skip
def test_gits_has_a_list_for_each_number_of_steps_and_reads_more_off_the_longest(levels):
    given = levels_of(SD, grid("gits-sd15", SD, len(levels) - 1), flow=False)
    np.testing.assert_allclose(given, levels, rtol=2e-5)
    assert [len(one) - 1 for one in PUBLISHED["gits-sd15"].others] == list(range(2, 21))
    if len(levels) == 21:
        between = levels_of(SD, grid("gits-sd15", SD, 40), flow=False)[1::2]
        np.testing.assert_allclose(between, np.sqrt(np.multiply(levels[1:], levels[:-1])), rtol=2e-5)


def test_a_grid_of_another_noise_schedule_is_refused():
    with pytest.raises(ValueError, match=r"run from 14.61\d* to 0.029\d*, but the noise schedule's from 80 to 0.002"):
        grid("ays-sd15", SCHEDULES["VELinear"], 10)
    with pytest.raises(ValueError, match=r"of a flow, alpha \+ sigma = 1"):
        grid("optimal-flux", SD, 10)


@pytest.mark.parametrize(
    "values", [(1.0, 0.5), (1.0, 0.5, 0.0), (1.0, 2.0, 0.1), (1.0, float("nan"), 0.1), (1.2, 0.5, 0.1)]
)
def test_impossible_levels_are_refused(values):
    with pytest.raises(ValueError, match="noise levels"):
        Levels(values, flow=True)
