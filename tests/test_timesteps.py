"""Time grids: made by hand against closed forms; learned ones: inverse, bounds and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import schedules, timesteps
from ld3_jax.timesteps import TimestepParams

SCHEDULES = {
    "ve_edm": schedules.ve_edm(),
    "ve_geometric": schedules.ve_geometric(),
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "vp_discrete": schedules.vp_discrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    "rectified_flow": schedules.rectified_flow(),
}
N = 6
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_grid = pytest.mark.parametrize("name", sorted(timesteps.GRIDS))
every_space = pytest.mark.parametrize("space", sorted(timesteps.SPACES))


def random_params(size=0.3):
    logits, shifts = jax.random.normal(jax.random.key(0), (2, N))
    return TimestepParams(logits, size * shifts[1:])


def smallest_gap(t, schedule, space):
    points = schedule.lam(t) if space == "lambda" else t
    return np.abs(np.diff(points)).min()


@every_schedule
@every_grid
@pytest.mark.parametrize("n", [1, N])
def test_grids_descend_between_exact_ends(name, schedule, n):
    t = timesteps.grid(name, schedule, n)
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
def test_grids_on_ve_edm_have_their_closed_form(name, closed_form, float64):
    np.testing.assert_allclose(timesteps.grid(name, SCHEDULES["ve_edm"], N), closed_form, rtol=1e-12)


@pytest.mark.parametrize("name", ["vp_linear", "rectified_flow"])
def test_logsnr_is_even_in_lam_and_edm_in_its_seventh_root(name, float64):
    schedule = SCHEDULES[name]
    logsnr, edm = (schedule.lam(timesteps.grid(grid, schedule, N)) for grid in ("logsnr", "edm"))
    np.testing.assert_allclose(np.diff(logsnr, 2), 0, atol=1e-10)
    np.testing.assert_allclose(np.diff(np.exp(-edm / 7), 2), 0, atol=1e-10)


@every_schedule
@every_grid
@every_space
def test_from_params_inverts_to_params(name, schedule, space, float64):
    t = timesteps.grid(name, schedule, N)
    points = schedule.lam(t) if space == "lambda" else t
    inner = 0.4 * smallest_gap(t, schedule, space) * jnp.cos(3.0 * jnp.arange(N - 1))
    points_c = points.at[1:-1].add(inner)
    t_c = (schedule.inverse_lam(points_c) if space == "lambda" else points_c).at[0].set(t[0]).at[-1].set(t[-1])
    params = timesteps.to_params(t, t_c, schedule, space)
    again, again_c = timesteps.from_params(params, schedule, space)
    np.testing.assert_allclose(params.shifts, inner, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again, t, rtol=1e-10)
    np.testing.assert_allclose(again_c, t_c, rtol=1e-10)


@every_schedule
@every_space
def test_to_params_inverts_from_params_up_to_the_mean_of_the_logits(schedule, space, float64):
    params = random_params()
    bound = timesteps.shift_bound(params, schedule, space)
    params = params._replace(shifts=bound * jnp.sin(1.0 + jnp.arange(N - 1)))
    again = timesteps.to_params(*timesteps.from_params(params, schedule, space), schedule, space)
    np.testing.assert_allclose(again.logits, params.logits - params.logits.mean(), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(again.shifts, params.shifts, rtol=1e-7, atol=1e-9)


@every_schedule
@every_space
@pytest.mark.parametrize("max_shift", [0.0, 0.2, 0.5])
def test_shifts_are_bounded_by_the_smallest_gap_and_keep_the_order(schedule, space, max_shift, float64):
    params = random_params(size=1e3)
    t, t_c = timesteps.from_params(params, schedule, space, max_shift)
    bound = max_shift * smallest_gap(t, schedule, space)
    points, points_c = (schedule.lam(t), schedule.lam(t_c)) if space == "lambda" else (t, t_c)
    np.testing.assert_allclose(np.abs(points_c - points)[1:-1], bound, rtol=1e-6, atol=1e-11)
    np.testing.assert_array_equal(t[jnp.asarray([0, -1])], t_c[jnp.asarray([0, -1])])
    np.testing.assert_array_equal(t[jnp.asarray([0, -1])], [schedule.t_max, schedule.t_min])
    assert np.all(np.diff(t) < 0)
    # Two shifts of half the smallest gap may meet, to rounding.
    assert np.all(np.diff(t_c) < 1e-12 * schedule.t_max)


@every_space
def test_equal_logits_still_allow_shifts(space):
    schedule = SCHEDULES["vp_linear"]
    t, t_c = timesteps.from_params(TimestepParams(jnp.zeros(N), jnp.full(N - 1, 0.01)), schedule, space)
    points, points_c = (schedule.lam(t), schedule.lam(t_c)) if space == "lambda" else (t, t_c)
    np.testing.assert_allclose((points_c - points)[1:-1], 0.01, rtol=1e-3)


def test_the_bound_carries_no_gradient(float64):
    # Where the bound holds a shift, t_c follows t as if the bound were a constant.
    params = random_params(size=1e3)
    jacobians = jax.jacobian(lambda params: timesteps.from_params(params, SCHEDULES["vp_linear"], "t"))(params)
    of_t, of_t_c = jacobians
    assert np.abs(of_t.logits).max() > 0.01
    np.testing.assert_allclose(of_t_c.logits, of_t.logits, rtol=1e-12)
    np.testing.assert_array_equal(of_t_c.shifts, 0)
    bound = jax.grad(lambda params: timesteps.shift_bound(params, SCHEDULES["vp_linear"]))(params)
    np.testing.assert_array_equal(bound.logits, 0)


@every_schedule
@every_space
def test_gradients_equal_finite_differences(schedule, space, float64):
    params = random_params()
    params = params._replace(shifts=0.8 * timesteps.shift_bound(params, schedule, space) * jnp.cos(jnp.arange(N - 1.0)))
    weights = jnp.cos(jnp.arange(2.0 * (N + 1))).reshape(2, -1)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(params):
        return jnp.vdot(weights, jnp.stack(timesteps.from_params(params, schedule, space)))

    for name in ("logits", "shifts"):
        gradient = getattr(value_and_gradient(params)[1], name)
        differences = []
        for i in range(len(gradient)):
            at = getattr(params, name)
            up, down = (value_and_gradient(params._replace(**{name: at.at[i].add(s)}))[0] for s in (1e-5, -1e-5))
            differences.append((up - down) / 2e-5)
        assert np.abs(gradient).min() > 0
        np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())


@every_schedule
@every_space
def test_gradients_are_finite_in_float32(schedule, space):
    def total(params):
        return sum(points.sum() for points in timesteps.from_params(params, schedule, space))

    for params in (random_params(), TimestepParams(jnp.zeros(N), jnp.zeros(N - 1))):
        assert all(np.isfinite(leaf).all() for leaf in jax.grad(total)(params))


def test_unknown_grids_and_spaces_are_refused():
    schedule = SCHEDULES["ve_edm"]
    t = timesteps.grid("edm", schedule, N)
    with pytest.raises(ValueError, match=r"'edm'.*'uniform'.*got 'karras'"):
        timesteps.grid("karras", schedule, N)
    with pytest.raises(ValueError, match=r"'lambda', 't'.*got 'sigma'"):
        timesteps.from_params(random_params(), schedule, "sigma")
    with pytest.raises(ValueError, match=r"'lambda', 't'.*got 'sigma'"):
        timesteps.to_params(t, t, schedule, "sigma")


@pytest.mark.parametrize("n", [0, -3])
def test_a_grid_without_steps_is_refused(n):
    with pytest.raises(ValueError, match=f"at least 1 step, got {n}"):
        timesteps.grid("uniform", SCHEDULES["ve_edm"], n)
