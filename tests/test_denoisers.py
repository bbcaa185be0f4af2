"""From any network's output to the noise prediction; EDM preconditioning; guidance; weights as arguments of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.tree_util import Partial

from ld3_jax import denoisers, schedules

VP, T = schedules.vp_linear(), jnp.float32(0.4)
X_0, EPS = jax.random.normal(jax.random.key(0), (2, 5, 3))
ALPHA, SIGMA = VP.alpha(T), VP.sigma(T)
X = ALPHA * X_0 + SIGMA * EPS
OUTPUTS = {
    "noise": EPS,
    "data": X_0,
    "v": ALPHA * EPS - SIGMA * X_0,
    "score": -EPS / SIGMA,
    "flow": EPS - X_0,
}


def constant(output, x, t, cond=None):
    return output


def linear(weights, x, t, cond=None):
    return x @ weights


def shifted_by_cond(x, t, cond):
    return jnp.tanh(x + cond[:, None])


@pytest.mark.parametrize("prediction", sorted(denoisers.PREDICTIONS))
def test_every_prediction_gives_the_noise_back(prediction):
    model = denoisers.to_noise(Partial(constant, OUTPUTS[prediction]), VP, prediction)
    np.testing.assert_allclose(model(X, T), EPS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", sorted(denoisers.PREDICTIONS))
def test_predictions_may_be_pytrees(prediction):
    output = OUTPUTS[prediction]
    model = denoisers.to_noise(Partial(constant, {"a": output, "b": -output}), VP, prediction)
    eps = model({"a": X, "b": -X}, T)
    np.testing.assert_allclose(eps["a"], EPS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eps["b"], -EPS, rtol=1e-5, atol=1e-5)


def test_to_data_gives_the_data_back():
    np.testing.assert_allclose(denoisers.to_data(Partial(constant, EPS), VP)(X, T), X_0, rtol=1e-5, atol=1e-5)


def test_an_unknown_prediction_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match=r"data.*flow.*noise.*score.*v.*'epsilon'"):
        denoisers.to_noise(linear, VP, "epsilon")


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_preconditioning_turns_the_ideal_network_into_the_exact_denoiser(sigma, float64):
    # For data from N(mean, sigma_data^2 I) the raw network below is the one whose denoiser is exact.
    mean, sigma_data, sigma = jnp.asarray([0.3, -1.0, 2.0]), 0.7, jnp.float64(sigma)
    root = jnp.sqrt(sigma**2 + sigma_data**2)

    def raw(scaled, noise_level, cond=None):
        np.testing.assert_allclose(noise_level, jnp.log(sigma) / 4)
        np.testing.assert_allclose(scaled, x / root)
        return jnp.broadcast_to(mean[None] * sigma / (sigma_data * root), scaled.shape)

    x = jax.random.normal(jax.random.key(1), (5, 3)) * root
    denoised = denoisers.edm_preconditioned(raw, sigma_data)(x, sigma)
    exact = (sigma_data**2 * x + sigma**2 * mean[None]) / root**2
    np.testing.assert_allclose(denoised, exact, rtol=1e-12)

    edm = schedules.ve_edm()
    eps = denoisers.to_noise(denoisers.edm_preconditioned(raw, sigma_data), edm, "data")(x, sigma)
    mixture = (mean[None], jnp.asarray([sigma_data**2]), jnp.ones(1))
    np.testing.assert_allclose(eps, reference.mixture_noise(x, 1.0, sigma, *mixture), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_extrapolates_from_unconditional_to_conditional(scale):
    cond, uncond = jnp.arange(1.0, 6.0), jnp.float32(-1.0)
    conditional, unconditional = shifted_by_cond(X, T, cond), shifted_by_cond(X, T, jnp.full(5, -1.0))
    assert np.abs(conditional - unconditional).min() > 1e-3
    guided = denoisers.guided(shifted_by_cond, uncond, scale)(X, T, cond)
    np.testing.assert_allclose(guided, unconditional + scale * (conditional - unconditional), rtol=1e-5, atol=1e-5)


def test_guidance_calls_the_network_once_on_a_doubled_batch():
    batches = []

    def counted(x, t, cond):
        batches.append((x.shape, cond["label"].shape))
        return x

    denoisers.guided(counted, {"label": jnp.float32(0.0)}, 2.0)(X, T, {"label": jnp.ones(5)})
    assert batches == [((10, 3), (10,))]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: denoisers.to_noise(network, VP, "v"),
        lambda network: denoisers.to_data(network, VP),
        lambda network: denoisers.to_noise(denoisers.edm_preconditioned(network), schedules.ve_edm(), "data"),
        lambda network: denoisers.guided(denoisers.to_noise(network, VP, "data"), None, 2.0),
    ],
)
def test_weights_stay_leaves_and_cross_jit_as_arguments(wrap):
    first, second = jax.random.normal(jax.random.key(2), (2, 3, 3))
    assert any(leaf is first for leaf in jax.tree.leaves(wrap(Partial(linear, first))))
    call = jax.jit(lambda model, x, t: model(x, t, None))
    one, two = call(wrap(Partial(linear, first)), X, T), call(wrap(Partial(linear, second)), X, T)
    assert call._cache_size() == 1
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_allclose(two, wrap(Partial(linear, second))(X, T, None), rtol=1e-4, atol=1e-4)
