"""From any network's output to noise and data; EDM preconditioning; guidance; weights as arguments of jit."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.tree_util import Partial

from ld3_jax import denoisers, schedules

VP, T = schedules.VPLinear(), jnp.float32(0.4)
X_0, EPS = jax.random.normal(jax.random.key(0), (2, 5, 3))
ALPHA, SIGMA = VP.alpha(T), VP.sigma(T)
X = ALPHA * X_0 + SIGMA * EPS
OUTPUTS = {
    "noise": EPS,
    "data": X_0,
    "v": ALPHA * EPS - SIGMA * X_0,
    "score": -EPS / SIGMA,
    "flow": EPS - X_0,
    "reversed_flow": X_0 - EPS,
}


def constant(output, x, t, cond=None):
    return output


def linear(weights, x, t, cond=None):
    return x @ weights


def of_gaussian(kind, schedule, std, x, t, cond=None):
    """The exact prediction for data from N(0, std^2 I)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    total = alpha**2 * std**2 + sigma**2
    eps, x_0 = sigma / total * x, alpha * std**2 / total * x
    return {
        "noise": eps,
        "data": x_0,
        "v": alpha * eps - sigma * x_0,
        "score": -x / total,
        "flow": eps - x_0,
        "reversed_flow": x_0 - eps,
    }[kind]


def shifted_by_cond(x, t, cond):
    return jnp.tanh(x + cond[:, None])


@pytest.mark.parametrize("prediction", sorted(denoisers.PREDICTIONS))
def test_every_prediction_gives_the_noise_back(prediction):
    model = denoisers.to_noise(Partial(constant, OUTPUTS[prediction]), VP, prediction)
    np.testing.assert_allclose(model(X, T), EPS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", sorted(denoisers.PREDICTIONS))
def test_every_prediction_gives_the_data_back(prediction):
    model = denoisers.to_noise(Partial(constant, OUTPUTS[prediction]), VP, prediction)
    np.testing.assert_allclose(denoisers.convert(model, VP, "data")(X, T), X_0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", sorted(denoisers.PREDICTIONS))
def test_predictions_may_be_pytrees(prediction):
    output = OUTPUTS[prediction]
    model = denoisers.to_noise(Partial(constant, {"a": output, "b": -output}), VP, prediction)
    for kind, expected in (("noise", EPS), ("data", X_0)):
        found = denoisers.convert(model, VP, kind)({"a": X, "b": -X}, T)
        chex.assert_trees_all_close(found, {"a": expected, "b": -expected}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "schedule", [VP, schedules.VELinear(), schedules.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_every_prediction_converts_at_every_noise_level_of_gaussian_data(schedule, float64):
    x = jax.random.normal(jax.random.key(3), (4, 3))
    for t in np.linspace(schedule.t_min, schedule.t_max, 5):
        for prediction in denoisers.PREDICTIONS:
            model = denoisers.to_noise(Partial(of_gaussian, prediction, schedule, 0.7), schedule, prediction)
            for kind in ("noise", "data"):
                found = denoisers.convert(model, schedule, kind)(x, jnp.asarray(t))
                exact = of_gaussian(kind, schedule, 0.7, x, jnp.asarray(t))
                np.testing.assert_allclose(found, exact, rtol=1e-7, err_msg=f"{prediction} to {kind} at {t}")


@pytest.mark.parametrize("kind", ["noise", "data"])
def test_what_the_solver_needs_is_passed_on_bit_for_bit(kind):
    schedule = schedules.VELinear()
    x, t, output = 80 * X, jnp.float32(80.0), OUTPUTS[kind]
    model = denoisers.to_noise(Partial(constant, output), schedule, kind)
    np.testing.assert_array_equal(jax.jit(denoisers.convert(model, schedule, kind))(x, t), output)
    if kind == "data":  # by way of the noise, digits are lost
        assert np.abs(x - t * model(x, t) - output).max() > 1e-6


def test_a_plain_callable_predicts_noise_and_becomes_data():
    model = Partial(constant, EPS)
    assert denoisers.convert(model, VP, "noise") is model
    np.testing.assert_allclose(denoisers.convert(model, VP, "data")(X, T), X_0, rtol=1e-5, atol=1e-5)


def test_a_denoiser_remembers_its_prediction_through_tree_operations():
    model = denoisers.to_noise(Partial(linear, jnp.eye(3)), VP, "v")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert isinstance(doubled, denoisers.Denoiser)
    assert (doubled.schedule, doubled.prediction) == (VP, "v")
    np.testing.assert_allclose(
        doubled(X, T), denoisers.to_noise(Partial(linear, 2 * jnp.eye(3)), VP, "v")(X, T), rtol=1e-6
    )


def test_the_leaves_paths_are_those_of_partials():
    """Files of learned times hold a digest over paths and bytes."""
    model = denoisers.to_noise(Partial(linear, jnp.eye(3)), VP, "v")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    partial = Partial(linear, VP, Partial(linear, jnp.eye(3)))
    assert paths == [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(partial)]


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

    edm = schedules.VELinear()
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


def test_guidance_without_conditions_is_refused():
    with pytest.raises(ValueError, match="needs a condition for each sample, got cond=None"):
        denoisers.guided(shifted_by_cond, jnp.float32(-1.0), 2.0)(X, T)


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
        lambda network: denoisers.convert(network, VP, "data"),
        lambda network: denoisers.convert(denoisers.to_noise(network, VP, "flow"), VP, "data"),
        lambda network: denoisers.to_noise(denoisers.edm_preconditioned(network), schedules.VELinear(), "data"),
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


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
def test_an_output_that_would_be_broadcast_is_refused(kind):
    model = denoisers.to_noise(Partial(constant, EPS[:1]), VP, kind)
    to = "data" if kind == "noise" else "noise"
    with pytest.raises(ValueError, match=r"shape of its input, \(5, 3\), got \(1, 3\)"):
        denoisers.convert(model, VP, to)(X, T)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """Like an Equinox module: a function, a choice and a weight are its leaves."""

    weight: jax.Array
    activation: Callable
    halve: bool
    width: int

    def __call__(self, x, t, cond=None):
        out = self.activation(self.weight * x) + len(range(self.width))
        return out / 2 if self.halve else out


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: denoisers.to_noise(model, VP, "data")])
def test_a_module_with_functions_as_leaves_crosses_jit_with_its_weights_as_arguments(wrap):
    run = jax.jit(lambda model, x: model(x, T, None))
    for weight in (1.0, 2.0):
        model = denoisers.as_pytree(wrap(Module(jnp.float32(weight), jnp.tanh, True, 3)))
        plain = wrap(lambda x, t, cond, weight=weight: (jnp.tanh(weight * x) + 3) / 2)
        np.testing.assert_allclose(run(model, X), plain(X, T, None), rtol=1e-5, atol=1e-5)
        assert [leaf.shape for leaf in jax.tree.leaves(model)] == [()]
    assert run._cache_size() == 1


def test_a_module_says_what_the_network_below_it_predicts():
    model = denoisers.as_pytree(
        Partial(lambda inner, on, x, t, cond: inner(x, t, cond), denoisers.to_noise(linear, VP, "v"), True)
    )
    assert denoisers.prediction_of(model) == "v"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x, t: x, r"called as network\(x, t, cond\) .* raises TypeError: .*takes 2 positional arguments"),
        (lambda x, t, cond: x * t[:, None], r"called as network\(x, t, cond\) with a scalar t; .* raises IndexError"),
        (lambda x, t, cond: x * cond["label"], "raises TypeError: 'NoneType' object is not subscriptable"),
        (lambda x, t, cond: (x, None), r"shape of its input, \(5, 3\), got \(\(5, 3\), None\)"),
        (lambda x, t, cond: x > 0, r"output must be arrays of real floating-point numbers, got 'bool\[5, 3\]'"),
        (lambda x, t, cond: 1j * x, r"output must be arrays of real floating-point numbers, got 'complex64\[5, 3\]'"),
    ],
)
def test_a_network_that_cannot_be_called_so_is_refused_in_one_line(network, message):
    model = denoisers.to_noise(network, VP, "v")
    with pytest.raises(ValueError, match=message) as caught:
        model(X, T)
    assert "\n" not in str(caught.value)
