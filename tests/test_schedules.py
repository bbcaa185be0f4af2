"""Noise schedules: formulas, inverses, float32 digits, derivatives, behaviour under jit, and one of a user's own."""

import dataclasses
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ld3_jax import grids, schedules, solvers

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SCHEDULES = {
    "VELinear": schedules.VELinear(),
    "VEGeometric": schedules.VEGeometric(),
    "VPLinear": schedules.VPLinear(),
    "VPConstantRate": schedules.VPLinear(beta_0=1.0, beta_1=1.0, t_max=10.0),
    "VPCosine": schedules.VPCosine(),
    "VPDiscrete": schedules.VPDiscrete(ALPHAS_CUMPROD),
    "RectifiedFlow": schedules.RectifiedFlow(),
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


def test_discrete_passes_through_its_numbers(float64):
    t = jnp.arange(1, 1001) / 1000
    np.testing.assert_allclose(SCHEDULES["VPDiscrete"].alpha(t) ** 2, ALPHAS_CUMPROD, rtol=1e-13)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name.startswith("VP")])
def test_vp_preserves_variance(name, float64):
    t = jnp.asarray(times(SCHEDULES[name]))
    np.testing.assert_allclose(SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2, 1, rtol=1e-13)


@every_schedule
@pytest.mark.parametrize("function", ["log_alpha", "log_sigma", "lam"])
def test_derivatives_equal_finite_differences(schedule, function, float64):
    f = getattr(schedule, function)
    # Times between the nodes of VPDiscrete, where it has a derivative.
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
    again = schedules.VPDiscrete(ALPHAS_CUMPROD)
    assert again == SCHEDULES["VPDiscrete"]
    assert hash(again) == hash(SCHEDULES["VPDiscrete"])
    assert schedules.VPLinear(beta_1=19.0) != schedules.VPLinear()


def test_an_equal_schedule_compiles_nothing_new():
    lam = jax.jit(chex.assert_max_traces(lambda schedule, t: schedule.lam(t), n=1))
    lam(schedules.VPDiscrete(ALPHAS_CUMPROD), jnp.float32(0.5))
    lam(schedules.VPDiscrete(ALPHAS_CUMPROD.tolist()), jnp.float32(0.25))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        lam(schedules.VPDiscrete(ALPHAS_CUMPROD[:-1]), jnp.float32(0.5))


@every_schedule
def test_its_fields_as_json_determine_a_schedule(schedule):
    fields = json.loads(json.dumps(dataclasses.asdict(schedule)))
    assert type(schedule)(**fields) == schedule
    assert jax.tree.leaves(schedule) == []


def test_fields_come_in_the_order_of_their_class():
    by_name = schedules.VPLinear(beta_0=0.2, beta_1=15.0, t_min=1e-4, t_max=0.9)
    assert schedules.VPLinear(0.2, 15.0, 1e-4, 0.9) == by_name


@dataclasses.dataclass(frozen=True)
class Power(schedules.NoiseSchedule):
    """A user's own: alpha = 1, sigma = t^power."""

    power: float
    t_min: float = 0.2
    t_max = 2.0

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def log_sigma(self, t):
        return self.power * jnp.log(t)

    def inverse_lam(self, lam):
        return jnp.exp(-lam / self.power)


def test_a_schedule_of_ones_own_samples_as_its_noise_levels_say(float64):
    # With alpha = 1 only sigma counts, whatever the times are called.
    own = Power(2.0)
    assert own == Power(2.0)
    assert own != Power(2.0, t_min=0.1)
    assert own.prior_scale == 1.0
    t = grids.grid("edm", own, 4)
    np.testing.assert_allclose(own.inverse_lam(own.lam(t)), t, rtol=1e-14)

    @chex.assert_max_traces(n=2)
    def samples(schedule, t):
        def model(x, t, cond):
            return jnp.tanh(x * schedule.sigma(t))

        return solvers.sample(model, schedule, jnp.linspace(-1.0, 1.0, 6), t, solver="ddim")

    samples = jax.jit(samples)
    same = samples(schedules.VELinear(own.t_min**2, own.t_max**2), t**2)
    np.testing.assert_allclose(samples(own, t), same, rtol=1e-12)
    np.testing.assert_array_equal(samples(Power(2.0), t), samples(own, t))


def test_a_class_that_would_compare_by_its_type_alone_is_refused():
    class Undecorated(Power):
        rate = 1.0

    class Halved(schedules.NoiseSchedule):
        def log_alpha(self, t):
            return jnp.zeros_like(t)

    with pytest.raises(TypeError, match=r"Undecorated must be decorated with @dataclass\(frozen=True\)"):
        Undecorated(2.0)
    with pytest.raises(TypeError, match=r"Halved .*inverse_lam.*log_sigma"):
        dataclasses.dataclass(frozen=True)(Halved)()


@pytest.mark.parametrize(
    "build",
    [
        lambda: schedules.VELinear(sigma_min=0.0),
        lambda: schedules.VELinear(sigma_min=2.0, sigma_max=1.0),
        lambda: schedules.VEGeometric(sigma_min=-1.0),
        lambda: schedules.VPLinear(beta_0=0.0),
        lambda: schedules.VPLinear(beta_0=2.0, beta_1=1.0),
        lambda: schedules.VPLinear(t_min=0.0),
        lambda: schedules.VPLinear(t_max=math.inf),
        lambda: schedules.VPLinear(beta_1=math.inf),
        lambda: schedules.VEGeometric(sigma_max=math.inf),
        lambda: schedules.RectifiedFlow(t_min=math.nan),
        lambda: schedules.VPLinear(t_min=1.0, t_max=1.0),
        lambda: schedules.VPCosine(t_min=0.9946),
        lambda: schedules.VPDiscrete([0.9]),
        lambda: schedules.VPDiscrete([0.5, 0.9]),
        lambda: schedules.VPDiscrete([1.0, 0.5]),
        lambda: schedules.VPDiscrete([0.5, 0.0]),
        lambda: schedules.VPDiscrete([0.9, 0.5, 4e-33]),
        lambda: schedules.VPDiscrete([0.9, 0.5, 0.5 - 1e-12]),
        lambda: schedules.VPDiscrete(np.array(["0.9", "0.5"])),
        lambda: schedules.VPDiscrete(np.array([0.9, 0.5 + 0j])),
        lambda: schedules.RectifiedFlow(t_max=1.0),
        lambda: schedules.RectifiedFlow(t_min=0.5, t_max=0.4),
    ],
)
def test_bad_constants_are_refused(build):
    with pytest.raises(ValueError, match=r"the noise schedule needs|t_min must be a number"):
        build()
