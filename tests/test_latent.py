"""Published latent-diffusion models: sizes, schedules, conventions, reading under the original names, a whole run."""

import functools
import itertools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import denoisers, solvers
from ld3_jax.networks import latent, weights
from ld3_jax.networks.files import MARKER, Checkpoint
from ld3_jax.networks.latent import NETWORKS, from_random, from_state, shrink
from ld3_jax.networks.unet import UNet

PREFIXES = {
    "unet": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "classes": "cond_stage_model.embedding.",
}


@pytest.fixture(autouse=True, scope="module")
def shapes_are_traced_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "shapes", functools.cache(latent.shapes))
        yield


class TimeTeller(UNet):
    """Stands in for a U-Net; depends only on the time that it gets."""

    @nn.compact
    def __call__(self, x, t, context=None):
        return nn.Dense(x.shape[-1])(x) * jnp.cos(t / 100) + context.mean()


def original_file(network, seed=0):
    """Random arrays under the names and in the layouts of the original files."""
    state = {}
    for part, tree in weights.random(latent.shapes(network), seed).items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            *modules, last = (entry.key for entry in path)
            kernel = np.moveaxis(leaf, (-2, -1), (1, 0)) if last == "kernel" else leaf
            name = ".".join([*modules, "bias" if last == "bias" else "weight"])
            state[PREFIXES[part] + name] = kernel
    return state


def equal(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    return len(ours) == len(theirs) > 10 and all(map(np.array_equal, ours, theirs))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("lsun_bedroom", {"unet": 274_056_163, "autoencoder": 55_322_782}),
        ("imagenet256", {"unet": 400_920_579, "autoencoder": 55_322_782, "classes": 1001 * 512}),
        ("stable_diffusion", {"unet": 859_520_964, "autoencoder": 83_653_863}),
    ],
)
def test_parameters_are_as_many_as_published(name, counts):
    assert {part: weights.count(tree) for part, tree in latent.shapes(NETWORKS[name]).items()} == counts


def test_schedules_are_the_published_ones(float64):
    schedule = NETWORKS["stable_diffusion"].schedule
    noise_over_signal = jnp.exp(-schedule.lam(jnp.asarray([1.0, 0.001])))
    # What the samplers that work in sigma / alpha quote for Stable Diffusion.
    np.testing.assert_allclose(noise_over_signal, [14.6146, 0.0292], atol=5e-5)
    kept = 1.0
    for i in range(1000):
        kept *= 1 - (0.0015**0.5 + (0.0195**0.5 - 0.0015**0.5) * i / 999) ** 2
    np.testing.assert_allclose(NETWORKS["imagenet256"].schedule.alpha(jnp.asarray(1.0)) ** 2, kept, rtol=1e-10)
    assert NETWORKS["lsun_bedroom"].schedule == NETWORKS["imagenet256"].schedule


def test_networks_get_the_times_of_their_training_and_a_flow_runs_from_noise_to_data():
    network, flow = (
        replace(network, unet=TimeTeller(4, 64, (1,), (), context_dim=8))
        for network in (shrink(NETWORKS["stable_diffusion"]), shrink(NETWORKS["instaflow"]))
    )
    x = jax.random.normal(jax.random.key(0), (1, *network.shape))
    context = jax.random.normal(jax.random.key(1), (1, *network.context_shape))
    call = jax.jit(lambda model, x, t, cond: model(x, jnp.float32(t), cond))
    unet = jax.tree_util.Partial(network.unet.apply, {"params": weights.random(latent.shapes(network))["unet"]})
    noise = call(from_random(network).model, x, 0.25, context)
    np.testing.assert_allclose(noise, call(unet, x, 249, context), atol=1e-5)
    assert jnp.abs(noise - call(unet, x, 250, context)).max() > 1e-3
    # x = (1 - t) x_0 + t eps and the network's velocity x_0 - eps give eps = x - (1 - t) velocity.
    noise = call(from_random(flow).model, x, 0.25, context)
    np.testing.assert_allclose(noise, x - 0.75 * call(unet, x, 250, context), atol=1e-5)


@pytest.mark.parametrize("name", ["lsun_bedroom", "imagenet256", "stable_diffusion"])
def test_a_file_with_the_original_names_is_read(name):
    network = shrink(NETWORKS[name])
    state = original_file(network) | {"betas": np.zeros(1000), "cond_stage_model.transformer.weight": np.zeros(3)}
    read, drawn = from_state(network, state, "file"), from_random(network)
    for part in ("model", "decode"):
        assert equal(getattr(read, part), getattr(drawn, part))
    assert (read.embed is None) == (name != "imagenet256")


def test_moving_averages_are_taken_where_a_file_holds_them():
    network = shrink(NETWORKS["lsun_bedroom"])
    last, averaged = original_file(network), original_file(network, seed=1)
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): array
        for name, array in averaged.items()
        if name.startswith("model.")
    }
    assert "model_ema.diffusion_modelinput_blocks10in_layers0weight" in averages
    read = from_state(network, last | averages, "file")
    assert equal(read.model, from_random(network, seed=1).model)
    assert equal(read.decode, from_random(network, seed=0).decode)


def test_averages_of_some_arrays_alone_are_refused():
    network = shrink(NETWORKS["lsun_bedroom"])
    state = original_file(network)
    names = [name for name in state if name.startswith("model.")]
    for some in (names[::2], ["model.ema.of.another.kind"]):
        averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): state[names[0]] for name in some}
        with pytest.raises(
            ValueError, match=rf"a file: has moving averages \(model_ema\.\) of \d+ of {len(names)} arrays"
        ):
            from_state(network, state | averages, "a file")
    read = from_state(network, state | {"model_ema.decay": np.ones(()), "model_ema.num_updates": np.ones(())}, "a file")
    assert equal(read.model, from_random(network).model)


EMPTY = np.zeros(0, np.float32)


@pytest.mark.parametrize(
    ("name", "state", "config", "prediction", "found"),
    [
        ("stable_diffusion", {}, {}, "", "noise"),
        ("stable_diffusion", {}, {}, "v", "v"),
        ("stable_diffusion", {"v_pred": EMPTY}, {}, "", "v"),
        ("stable_diffusion", {}, {MARKER: "v"}, "", "v"),
        ("stable_diffusion", {}, {MARKER: "epsilon"}, "noise", "noise"),
        ("stable_diffusion", {}, {"prediction_type": "v_prediction"}, "v", "v"),
        ("stable_diffusion", {}, {"prediction_type": "sample"}, "", "data"),
        ("instaflow", {}, {}, "flow", "flow"),
        ("stable_diffusion", {"v_pred": EMPTY}, {}, "noise", "noise and v"),
        ("stable_diffusion", {"v_pred": EMPTY}, {MARKER: "epsilon"}, "", "noise and v"),
        ("stable_diffusion", {}, {MARKER: "x0"}, "", "x0"),
        ("stable_diffusion", {"edm_vpred.sigma_max": EMPTY}, {}, "", "edm_vpred.sigma_max"),
        ("stable_diffusion", {}, {}, "reversed_flow", "reversed_flow"),
        ("instaflow", {}, {}, "v", "v"),
        ("instaflow", {"v_pred": EMPTY}, {}, "", "v"),
    ],
)
def test_a_network_predicts_what_its_file_says(name, state, config, prediction, found):
    def read():
        return latent.as_trained(NETWORKS[name], Checkpoint("torch", state, config), "a file", prediction)

    if (name, found) in [*itertools.product(["stable_diffusion"], ["noise", "v", "data"]), ("instaflow", "flow")]:
        assert read() == replace(NETWORKS[name], prediction=found)
    else:
        with pytest.raises(ValueError, match=rf"a file: network\.prediction must be one of .*{found!r}"):
            read()


def test_a_v_prediction_becomes_noise_by_its_formula():
    network = replace(shrink(NETWORKS["stable_diffusion"]), unet=TimeTeller(4, 64, (1,), (), context_dim=8))
    x, t = jax.random.normal(jax.random.key(0), (1, *network.shape)), jnp.asarray(0.25)
    context = jnp.ones((1, *network.context_shape))
    raw, v = (from_random(replace(network, prediction=one)).model(x, t, context) for one in ("noise", "v"))
    schedule = network.schedule
    np.testing.assert_allclose(v, schedule.alpha(t) * raw + schedule.sigma(t) * x, atol=1e-5)


@pytest.mark.parametrize("name", ["stable_diffusion", "lsun_bedroom"])
def test_a_file_of_zero_terminal_snr_has_its_noise_schedule(name):
    usual = NETWORKS[name]
    files = (
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}),
        ({}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    )
    read = [latent.as_trained(usual, Checkpoint("torch", state, config), "a file").schedule for state, config in files]
    root = np.sqrt(np.asarray(usual.schedule.alphas_cumprod))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    for schedule in read:
        np.testing.assert_allclose(schedule.alphas_cumprod[:-1], expected[:-1], rtol=1e-12)
        assert 0 < schedule.alphas_cumprod[-1] <= 4.8973451890853435e-08
        t = jnp.linspace(schedule.t_max, schedule.t_min, 8)
        assert np.isfinite(schedule.lam(t)).all()
        np.testing.assert_allclose(schedule.inverse_lam(schedule.lam(t)), t, atol=1e-4)
    kept = {"alphas_cumprod": np.asarray(read[0].alphas_cumprod, np.float16), "v_pred": EMPTY}
    assert latent.as_trained(usual, Checkpoint("torch", kept, {}), "a file").schedule == read[0]
    kept = {"alphas_cumprod": np.asarray(usual.schedule.alphas_cumprod, np.float16)}
    assert latent.as_trained(usual, Checkpoint("torch", kept, {}), "a file") == usual
    for state, message in (
        ({"ztsnr": EMPTY}, r"ends without signal \(ztsnr\).*network\.prediction='v'"),
        ({"alphas_cumprod": np.linspace(0.99, 0.01, 1000)}, "another noise schedule"),
        ({"alphas_cumprod": np.linspace(0.99, 0.01, 50)}, "another noise schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            latent.as_trained(usual, Checkpoint("torch", state, {}), "a file")


def test_samples_are_finite_where_no_signal_is_left():
    network = latent.as_trained(NETWORKS["stable_diffusion"], Checkpoint("torch", {"ztsnr": EMPTY}, {}), "a file", "v")
    schedule = network.schedule

    def model(x, t, cond=None):  # for normal data: x_0 given x is alpha x, and v = 0
        return denoisers.to_noise(lambda x, t, cond: 0 * x, schedule, "v")(x, t, cond)

    x_T, t = jax.random.normal(jax.random.key(0), (2, 4)), jnp.linspace(1.0, 0.001, 6)
    for solver in ("dpmpp", "ipndm"):
        x_0 = solvers.sample(jax.tree_util.Partial(model), schedule, x_T, t, solver=solver)
        assert np.isfinite(x_0).all(), solver


def test_a_missing_array_is_named():
    network = shrink(NETWORKS["imagenet256"])
    state = original_file(network)
    for name in ("model.diffusion_model.out.2.bias", "cond_stage_model.embedding.weight"):
        with pytest.raises(ValueError, match=rf"some file lacks: {name}"):
            from_state(network, {key: array for key, array in state.items() if key != name}, "some file")


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match=r"'noise', 'reversed_flow', 'v'.*got 'score'"):
        replace(NETWORKS["instaflow"], prediction="score")


def test_class_numbers_become_contexts():
    pretrained = from_random(shrink(NETWORKS["imagenet256"]))
    contexts = pretrained.embed(jnp.asarray([3, 1000, 1001]))
    assert contexts.shape == (3, 1, 8)
    assert jnp.abs(contexts[0] - contexts[1]).max() > 0.1
    assert jnp.isnan(contexts[2]).all()


def test_guided_samples_follow_the_class():
    network = shrink(NETWORKS["imagenet256"])
    (model, decode, embed), schedule = from_random(network), network.schedule
    x_T, t = jax.random.normal(jax.random.key(0), (1, *network.shape)), jnp.asarray([1.0, 0.5, 0.001])
    model = denoisers.guided(model, embed(jnp.asarray([1000]))[0], 2.0)

    @jax.jit
    def images(model, decode, x_T, cond):
        return decode(solvers.sample(model, schedule, x_T, t, solver="ddim", cond=cond))

    dog, ship, none = (images(model, decode, x_T, embed(jnp.asarray([label]))) for label in (207, 510, 1000))
    assert dog.shape == (1, 16, 16, 3)
    assert jnp.isfinite(dog).all()
    assert min(jnp.abs(dog - ship).max(), jnp.abs(dog - none).max()) > 1e-2
