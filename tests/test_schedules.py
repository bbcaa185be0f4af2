"""Noise schedules: formulas, inverses, float32 digits, derivatives and behaviour under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ld3_jax import schedules

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SCHEDULES = {
    "ve_edm": schedules.ve_edm(),
    "ve_geometric": schedules.ve_geometric(),
    "vp_linear": schedules.vp_linear(),
    "vp_constant_rate": schedules.vp_linear(beta_0=1.0, beta_1=1.0, t_max=10.0),
    "vp_cosine": schedules.vp_cosine(),
    "vp_discrete": schedules.vp_discrete(ALPHAS_CUMPROD),
    "rectified_flow": schedules.rectified_flow(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def times(schedule, n=2001):
    """Float32 times of the whole range, dense at both ends, as NumPy float64."""
    u = np.linspace(0, 1, n)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * np.concatenate([u, u**4, 1 - u**4])
    return t.astype(np.float32).astype(np.float64)


def gradient(f):
    return jax.jit(jax.vmap(jax.grad(f)))


@every_schedule
def test_inverse_lam_inverts_lam_in_float64(schedule, float64):
    t = jnp.asarray(times(schedule))
    np.testing.assert_allclose(schedule.inverse_lam(schedule.lam(t)), t, rtol=1e-13, atol=1e-15)


@every_schedule
def test_inverse_lam_inverts_lam_in_float32(schedule):
    t = jnp.asarray(times(schedule), jnp.float32)
    np.testing.assert_allclose(schedule.inverse_lam(schedule.lam(t)), t, rtol=2e-6, atol=1e-7)


@every_schedule
def test_lam_decreases_in_t(schedule, float64):
    lam = schedule.lam(jnp.asarray(times(schedule)))
    t, first = np.unique(times(schedule), return_index=True)
    assert len(t) > 2001
    assert np.all(np.diff(lam[first]) < 0)


@every_schedule
@pytest.mark.parametrize("function", ["log_alpha", "log_sigma", "lam"])
def test_float32_keeps_its_digits(schedule, function):
    t = times(schedule)
    single = getattr(schedule, function)(jnp.asarray(t, jnp.float32))
    with jax.enable_x64(True):
        double = getattr(schedule, function)(jnp.asarray(t))
    # Where sigma is close to 1 its logarithm is close to 0, and the error is one of sigma: hence the absolute bound.
    np.testing.assert_allclose(single, double, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("name", reference.SCHEDULES)
def test_alpha_and_sigma_are_the_papers_formulas(name, float64):
    schedule, plain = SCHEDULES[name], reference.SCHEDULES[name]
    t = times(schedule)
    np.testing.assert_allclose(schedule.alpha(jnp.asarray(t)), plain.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(t)), plain.sigma(t), rtol=1e-11)


def test_vp_discrete_passes_through_its_numbers(float64):
    t = jnp.arange(1, 1001) / 1000
    np.testing.assert_allclose(SCHEDULES["vp_discrete"].alpha(t) ** 2, ALPHAS_CUMPROD, rtol=1e-13)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name.startswith("vp")])
def test_vp_preserves_variance(name, float64):
    t = jnp.asarray(times(SCHEDULES[name]))
    np.testing.assert_allclose(SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2, 1, rtol=1e-13)


@every_schedule
@pytest.mark.parametrize("function", ["log_alpha", "log_sigma", "lam"])
def test_derivatives_equal_finite_differences(schedule, function, float64):
    f = getattr(schedule, function)
    # Times between the nodes of vp_discrete, where it has a derivative.
    t = np.linspace(schedule.t_min, schedule.t_max, 30)[1:-1] // 1e-3 * 1e-3 + 5e-4
    step = 1e-6 * t
    slope = (f(jnp.asarray(t + step)) - f(jnp.asarray(t - step))) / (2 * step)
    np.testing.assert_allclose(gradient(f)(jnp.asarray(t)), slope, rtol=1e-7, atol=1e-8)


@every_schedule
def test_gradients_are_finite_in_float32(schedule):
    t = jnp.asarray(times(schedule), jnp.float32)
    assert np.isfinite(gradient(schedule.lam)(t)).all()
    assert np.isfinite(gradient(schedule.log_alpha)(t)).all()
    assert np.isfinite(gradient(schedule.inverse_lam)(schedule.lam(t))).all()


def test_schedules_compare_and_hash_by_value():
    again = schedules.vp_discrete(ALPHAS_CUMPROD)
    assert again == SCHEDULES["vp_discrete"]
    assert hash(again) == hash(SCHEDULES["vp_discrete"])
    assert schedules.vp_linear(beta_1=19.0) != schedules.vp_linear()


def test_an_equal_schedule_compiles_nothing_new():
    lam = jax.jit(lambda schedule, t: schedule.lam(t))
    lam(schedules.vp_discrete(ALPHAS_CUMPROD), jnp.float32(0.5))
    lam(schedules.vp_discrete(ALPHAS_CUMPROD.tolist()), jnp.float32(0.25))
    assert lam._cache_size() == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: schedules.ve_edm(sigma_min=0.0),
        lambda: schedules.ve_edm(sigma_min=2.0, sigma_max=1.0),
        lambda: schedules.ve_geometric(sigma_min=-1.0),
        lambda: schedules.vp_linear(beta_0=0.0),
        lambda: schedules.vp_linear(beta_0=2.0, beta_1=1.0),
        lambda: schedules.vp_linear(t_min=0.0),
        lambda: schedules.vp_linear(t_min=1.0, t_max=1.0),
        lambda: schedules.vp_cosine(t_min=0.9946),
        lambda: schedules.vp_discrete([0.9]),
        lambda: schedules.vp_discrete([0.5, 0.9]),
        lambda: schedules.vp_discrete([1.0, 0.5]),
        lambda: schedules.vp_discrete([0.5, 0.0]),
        lambda: schedules.rectified_flow(t_max=1.0),
        lambda: schedules.rectified_flow(t_min=0.5, t_max=0.4),
    ],
)
def test_bad_constants_are_refused(build):
    with pytest.raises(ValueError, match="the noise schedule needs"):
        build()
