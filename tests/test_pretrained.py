"""Pre-trained models by name: from files to a model, conditions, identity, and what is refused."""

import dataclasses
import functools
import json
import time
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import given
from ld3_jax import disk, pretrained
from ld3_jax.networks import edm, files, latent, text, weights
from ld3_jax.networks.files import Checkpoint
from ld3_jax.networks.unet import UNet
from ld3_jax.pretrained import Settings, download
from ld3_jax.teacher import draw_noise

PREFIXES = {"unet": "model.diffusion_model.", "autoencoder": "first_stage_model."}


@pytest.fixture(autouse=True, scope="module")
def shapes_are_traced_once():
    with pytest.MonkeyPatch.context() as patch:
        for module in (edm, latent):
            patch.setattr(module, "shapes", functools.cache(module.shapes))
        yield


def official(params, prefix):
    """Parameters under the names and in the layouts of a published file."""
    state = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        *modules, last = (entry.key for entry in path)
        leaf = np.ascontiguousarray(np.moveaxis(leaf, (-2, -1), (1, 0))) if last == "kernel" else leaf
        name = last if last in ("bias", "map_noise.freqs") else "weight"
        state[prefix + ".".join([*modules, name])] = leaf
    return state


def write(path: Path, state) -> str:
    safetensors.numpy.save_file(state, path)
    return str(path)


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def test_a_pixel_model_comes_from_its_file(tmp_path, monkeypatch):
    small = edm.shrink(edm.NETWORKS["cifar10"])
    monkeypatch.setitem(edm.NETWORKS, "cifar10", small)
    file = write(tmp_path / "net.safetensors", official(weights.random(edm.shapes(small)), "model."))
    model = pretrained.load("cifar10", file=file)
    assert same(model.model, pretrained.load("cifar10", random_weights=True).model)
    assert model.shape == small.shape
    assert model.draw_condition is None
    assert str(model) == model.name == "cifar10"


@pytest.mark.parametrize(
    ("config", "kind"),
    [({"class_name": "EDMPrecond", "sigma_data": 0.8}, "edm"), ({"class_name": "VPPrecond"}, "vp"), ({}, "ve")],
)
def test_a_pixel_models_preconditioning_is_its_files(config, kind, tmp_path, monkeypatch):
    """Without a class in the file it is the architecture's."""
    small = edm.shrink(edm.NETWORKS["cifar10"])
    monkeypatch.setitem(edm.NETWORKS, "cifar10", small if config else dataclasses.replace(small, preconditioning=kind))
    state = official(weights.random(edm.shapes(small)), "model.")
    files.write(tmp_path / "net.safetensors", Checkpoint("edm", state, config), {})
    net = dataclasses.replace(small, preconditioning=kind, sigma_data=config.get("sigma_data", 0.5))
    # In the network's place is what shows its inputs.
    monkeypatch.setattr(edm.SongUNet, "apply", lambda module, params, x, noise, cond: noise * x)
    model, expected = pretrained.load("cifar10", file=str(tmp_path / "net.safetensors")).model, edm.from_random(net)[0]
    assert same(model, expected)
    x, sigma = jnp.ones((1, *small.shape)), jnp.asarray(3.0)
    np.testing.assert_array_equal(model(x, sigma), expected(x, sigma))
    assert np.abs(model(x, sigma) - edm.from_random(small)[0](x, sigma)).max() > 1e-3


def test_a_pixel_model_of_another_preconditioning_is_refused(tmp_path):
    files.write(tmp_path / "a.safetensors", Checkpoint("edm", {"w": np.ones(1)}, {"class_name": "iDDPMPrecond"}), {})
    with pytest.raises(ValueError, match=r"a\.safetensors: preconditioning must be one of .*, the file's is iDDPMPrec"):
        pretrained.load("cifar10", file=str(tmp_path / "a.safetensors"))


@pytest.fixture
def small(monkeypatch):
    """A shrunken model in its architecture's place, and the arrays of its parts by seed."""
    network = latent.shrink(latent.NETWORKS["lsun_bedroom"])
    monkeypatch.setitem(latent.NETWORKS, "lsun_bedroom", network)
    params = [weights.random(latent.shapes(network), seed) for seed in (0, 1)]
    return network, [[official(one[part], "") for part in PREFIXES] for one in params]


def under(prefix, state):
    return {prefix + name: array for name, array in state.items()}


LOSS = {"loss.discriminator.main.0.weight": np.ones((2, 2), np.float32)}
LORA = {"lora_unet_down_blocks_0.alpha": np.ones(1, np.float32)}


@pytest.mark.parametrize(
    ("unet", "first"),
    [
        (lambda unet, own: under("model.diffusion_model.", unet) | under("first_stage_model.", own), None),
        (lambda unet, own: under("model.diffusion_model.", unet), lambda unet, own: under("first_stage_model.", own)),
        # A file of the first stage may hold another U-Net, which must not be taken.
        (
            lambda unet, own: unet,
            lambda unet, own: own | under("model.diffusion_model.", unet | {"out.2.bias": 0 * unet["out.2.bias"]}),
        ),
        (lambda unet, own: unet, lambda unet, own: own | LOSS),
        (
            lambda unet, own: unet | own,
            lambda unet, own: own | {"model_ema." + name.replace(".", ""): array for name, array in own.items()},
        ),
    ],
    ids=["one file", "apart", "another U-Net", "LDM's own", "averages"],
)
def test_a_latent_model_comes_from_its_files(unet, first, small, tmp_path):
    (_, others) = small[1]
    random = pretrained.load("lsun_bedroom", random_weights=True)
    own, (_, other) = small[1][0], others
    paths = {"file": write(tmp_path / "u.safetensors", unet(own[0], other if first else own[1]))}
    if first:
        paths["first_stage"] = write(tmp_path / "f.safetensors", first(own[0], own[1]))
    model = pretrained.load("lsun_bedroom", **paths)
    assert same(model.model, random.model)
    assert same(model.decode, random.decode)
    assert model.identity()["predicts"] == "noise"


@pytest.mark.parametrize(
    ("file", "first", "message"),
    [
        (
            lambda unet, own: unet | own,
            lambda unet, own: LORA,
            r"f\.safetensors holds no first stage .*a LoRA: lora_unet",
        ),
        (
            lambda unet, own: unet | own,
            lambda unet, own: unet,
            r"f\.safetensors holds no first stage .* a U-Net: input_",
        ),
        (lambda unet, own: unet, lambda unet, own: {}, r"u\.safetensors holds no first stage .*network\.first_stage"),
        (lambda unet, own: own, lambda unet, own: own, r"u\.safetensors holds no U-Net .*but a first stage: decoder"),
        (lambda unet, own: LORA, lambda unet, own: own, r"u\.safetensors holds no U-Net .*but a LoRA"),
        (
            lambda unet, own: unet,
            lambda unet, own: own | {"decoder.more": np.ones(1)},
            r"f\.safetensors has unknown arrays",
        ),
        (
            lambda unet, own: unet | under("ema.", unet),
            lambda unet, own: own,
            r"u\.safetensors holds 2 of this network",
        ),
        (
            lambda unet, own: {name: array.astype(np.int8) for name, array in unet.items()},
            lambda unet, own: own,
            r"integers \(quantised",
        ),
    ],
)
def test_a_file_that_does_not_hold_what_it_is_given_for_is_refused(file, first, message, small, tmp_path):
    given = small[1][0]
    paths = {"file": write(tmp_path / "u.safetensors", file(*given))}
    if held := first(*given):
        paths["first_stage"] = write(tmp_path / "f.safetensors", held)
    with pytest.raises(ValueError, match=message):
        pretrained.load("lsun_bedroom", **paths)


@pytest.mark.parametrize("where", ["key", "metadata", "scheduler", "setting"])
def test_a_files_marker_decides_what_its_network_predicts(where, small, tmp_path):
    unet, own = small[1][0]
    (tmp_path / "unet").mkdir()
    path, metadata, settings = tmp_path / "unet" / "m.safetensors", {}, {}
    state = under("model.diffusion_model.", unet) | under("first_stage_model.", own)
    if where == "key":
        state["v_pred"] = np.zeros(0, np.float32)
    elif where == "metadata":
        metadata = {files.MARKER: "v"}
    elif where == "scheduler":
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    else:
        settings = {"prediction": "v"}
    safetensors.numpy.save_file(state, path, metadata)
    model = pretrained.load("lsun_bedroom", file=str(path), **settings)
    assert model.identity()["predicts"] == "v"
    assert same(model.model, pretrained.load("lsun_bedroom", random_weights=True).model)
    if where != "setting":
        with pytest.raises(ValueError, match=r"m\.safetensors: network\.prediction must be .* 'noise and v'"):
            pretrained.load("lsun_bedroom", file=str(path), prediction="noise")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], r"scheduler_config\.json: no scheduler's configuration"),
        (
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000},
            "noise levels",
        ),
        ({"trained_betas": [0.01] * 1000}, "noise levels"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "noise levels"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "noise levels"),
        ({"timestep_type": "continuous"}, "noise levels"),
    ],
)
def test_a_scheduler_of_other_noise_beside_a_file_is_refused(config, message, tmp_path):
    for name in ("unet", "scheduler"):
        (tmp_path / name).mkdir()
    file = write(tmp_path / "unet" / "m.safetensors", {"a": np.ones(1)})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        pretrained.load("lsun_bedroom", file=file)


class ContextTeller(UNet):
    """Stands in for a U-Net; depends only on the context that it gets."""

    @nn.compact
    def __call__(self, x, t, context=None):
        return nn.Dense(x.shape[-1])(x) + jnp.tanh(context.sum((1, 2)))[:, None, None, None]


def test_classes_are_drawn_and_guidance_has_two_different_halves(monkeypatch):
    network = latent.NETWORKS["imagenet256"]
    monkeypatch.setitem(
        latent.NETWORKS, "imagenet256", dataclasses.replace(network, unet=ContextTeller(3, 64, (1,), (), context_dim=8))
    )
    plain = pretrained.load("imagenet256", random_weights=True)
    guided = pretrained.load("imagenet256", guidance=2.0, random_weights=True)
    cond = guided.draw_condition(jax.random.key(0), 2)
    assert jnp.abs(cond[0] - cond[1]).max() > 0.1
    x, t = jax.random.normal(jax.random.key(1), (2, *plain.shape)), jnp.asarray(0.7)
    none = latent.from_random(latent.shrink(latent.NETWORKS["imagenet256"])).embed(jnp.array([1000, 1000]))
    call = jax.jit(lambda model, cond: model(x, t, cond))
    conditional, unconditional = call(plain.model, cond), call(plain.model, none)
    assert jnp.abs(conditional - unconditional).max() > 1e-3
    np.testing.assert_allclose(call(guided.model, cond), 2 * conditional - unconditional, atol=1e-4)
    assert plain.identity()["digest"] != guided.identity()["digest"]


def test_labels_of_a_pixel_model_are_one_hot():
    model = pretrained.load("imagenet64", random_weights=True)
    labels = model.draw_condition(jax.random.key(0), 50)
    assert labels.shape == (50, 1000)
    assert jnp.all(labels.sum(-1) == 1)
    assert len(np.unique(labels.argmax(-1))) > 40


@pytest.fixture
def prompted(tmp_path, monkeypatch):
    """A shrunken Stable Diffusion with three prompts; the numbers in prompt i's embedding are i. What was embedded."""
    asked = []

    def embed(prompts, encoder, cache, on_batch):
        asked.append(list(prompts))
        on_batch(1, 1)
        numbers = np.arange(float(len(prompts)), dtype=np.float32).reshape(-1, 1, 1)
        return text.Embeddings(numbers * np.ones(network.context_shape, np.float32), np.zeros(network.context_shape))

    (tmp_path / "prompts.txt").write_text("a cat\na dog\na ship\n")
    network = latent.shrink(latent.NETWORKS["stable_diffusion"])
    monkeypatch.setattr(text, "embed", embed)
    monkeypatch.setitem(latent.NETWORKS, "stable_diffusion", network)
    state = {
        name: array
        for part, params in weights.random(latent.shapes(network)).items()
        for name, array in official(params, PREFIXES[part]).items()
    }
    file = write(tmp_path / "sd.safetensors", state)
    settings = {"file": file, "prompts": str(tmp_path / "prompts.txt"), "text_encoder": str(tmp_path)}
    return functools.partial(pretrained.load, "stable_diffusion", **settings), asked


def test_each_prompt_is_drawn_once_before_any_comes_twice(prompted):
    load, _ = prompted
    calls = []
    model = load(on_progress=lambda *call: calls.append(call))
    drawn = model.draw_condition(jax.random.key(0), 6)[:, 0, 0]
    assert sorted(drawn[:3].tolist()) == sorted(drawn[3:].tolist()) == [0.0, 1.0, 2.0]
    assert model.draw_condition(jax.random.key(0), 3, 2)[:, 0, 0].tolist() == drawn[2:5].tolist()
    assert calls == [("text", 1, 1)]


def test_only_the_first_so_many_prompts_are_embedded(prompted):
    load, asked = prompted
    drawn = load(num_prompts=2).draw_condition(jax.random.key(0), 4)[:, 0, 0]
    assert sorted(drawn.tolist()) == [0.0, 0.0, 1.0, 1.0]
    load(num_prompts=0)
    load(num_prompts=5)
    assert asked == [["a cat", "a dog"], *[["a cat", "a dog", "a ship"]] * 2]


def test_drawn_states_have_the_priors_scale_and_do_not_depend_on_their_number():
    model, key = pretrained.load("imagenet64", random_weights=True), jax.random.key(3)
    x_T, cond = model.draw(key, 3)
    noise_key, cond_key = jax.random.split(key)
    np.testing.assert_array_equal(x_T, 80.0 * draw_noise(noise_key, 3, model.shape))
    np.testing.assert_array_equal(cond, model.draw_condition(cond_key, 3))
    for count, first in ((2, 0), (2, 1)):
        some = model.draw(key, count, first)
        np.testing.assert_allclose(some[0], x_T[first : first + count], rtol=1e-6)
        np.testing.assert_array_equal(some[1], cond[first : first + count])
    assert pretrained.load("ring").draw(key, 2)[1] is None


def test_display_is_of_pictures_only():
    images = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(pretrained.load("cifar10", random_weights=True).display(images, images), [0, 0.5, 1])
    galaxies = np.linspace(0.0, 2.0, 1001)  # the sky, which is black, is their median
    np.testing.assert_allclose(pretrained.load("hsc32").display(galaxies, galaxies)[[500, 998]], [0, 1], atol=1e-12)
    assert pretrained.load("ring").display is None


@pytest.mark.parametrize(
    ("name", "settings", "digest"),
    [
        ("ring", {}, "e4c270e9d9ea38cb"),
        ("hsc32", {}, "f403a8b73cc2a395"),
        ("cifar10", {"random_weights": True}, "2e80e667ef92835b"),
        ("imagenet256", {"random_weights": True, "guidance": 2.0}, "e479d0b875d0bf21"),
        ("instaflow", {"random_weights": True}, "ba03efaa1aab21e4"),
    ],
)
def test_a_models_identity_is_that_in_the_files_of_earlier_versions(name, settings, digest):
    model = pretrained.load(name, **settings)
    identity = model.identity()
    assert (identity["name"], identity["digest"]) == (name, digest)
    assert digest == disk.digest(model.model)
    assert identity == json.loads(json.dumps(identity))
    identity.pop("decoder", None)  # of a latent model, since 0.5
    identity.pop("predicts")  # since 0.6
    assert {**dataclasses.asdict(Settings(**settings)), "name": name, "digest": digest} == identity


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cifar100", {"random_weights": True}, r"network\.name must be one of .*'cifar10'.* got 'cifar100'"),
        ("hsc33", {}, r"network\.name must be one of .*'hsc32'.* got 'hsc33'; did you mean 'hsc32'"),
        ("cifar10", {"guidance": 2.0}, r"'cifar10' has no guidance: it must be 1\.0, got 2\.0"),
        ("ring", {"guidance": 2.0}, "'ring' has no guidance"),
        ("lsun_bedroom", {"guidance": 2.0, "random_weights": True}, "'lsun_bedroom' has no guidance"),
        ("hsc32", {"file": "x.pkl"}, "'hsc32' has no file"),
        ("hsc32", {"dtype": "bfloat16"}, "'hsc32' has no dtype"),
        ("cifar10", {"num_prompts": 3}, "'cifar10' has no num_prompts"),
        ("cifar10", {"prediction": "v"}, "'cifar10' has no prediction"),
        ("hsc32", {"prediction": "v"}, "'hsc32' has no prediction"),
        ("instaflow", {"prediction": "noise"}, r"network\.prediction must be one of .'reversed_flow', 'flow'.*'noise'"),
        ("lsun_bedroom", {"prediction": "eps", "file": "none"}, r"network\.prediction must be one of .*'v'.*'eps'"),
        ("imagenet256", {"prompts": "p.txt", "random_weights": True}, "'imagenet256' has no prompts"),
        ("cifar10", {}, r"network\.file must name the file of the weights"),
        ("cifar10", {"dtype": "float64"}, r"network\.dtype must be one of .*'float32'.* got 'float64'"),
        ("cifar10", {"file": 3}, r"network\.file must be of type str, got 3"),
        ("imagenet256", {"guidance": "2"}, r"network\.guidance must be of type float, got '2'"),
        ("cifar10", {"random_weights": 1}, r"network\.random_weights must be of type bool, got 1"),
        ("imagenet256", {"guidance": 0.0}, r"network\.guidance must be greater than 0, got 0\.0"),
        ("stable_diffusion", {"num_prompts": -1}, r"network\.num_prompts must be at least 0, got -1"),
        ("ring", {"weights": "x"}, r"\['weights'\] are not settings of a model"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(name, **settings)


def test_a_missing_file_of_no_known_name_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"edm-cifar10-32x32-uncond-vp\.pkl"):
        pretrained.load("cifar10", file=str(tmp_path / "mine.pkl"))


def test_text_needs_prompts_and_an_encoder():
    with pytest.raises(ValueError, match=r"network\.prompts must name a file of prompts"):
        pretrained.load("stable_diffusion", file="not-read.ckpt")


def test_the_root_of_the_disk_is_not_searched():
    begun = time.process_time()
    with pytest.raises(ValueError, match="/ is a folder; give the file of the weights"):
        pretrained.load("cifar10", file="/")
    assert time.process_time() - begun < 5


def test_a_folder_in_place_of_a_file_names_the_files_in_it(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"is a folder; give the file of the weights, one of .*unet/model"):
        pretrained.load("cifar10", file=str(tmp_path))


def test_a_schedules_weights_may_lie_elsewhere_and_are_downloaded_only_where_a_flag_says(tmp_path, monkeypatch):
    small = edm.shrink(edm.NETWORKS["cifar10"])
    monkeypatch.setitem(edm.NETWORKS, "cifar10", small)
    states = [official(weights.random(edm.shapes(small), seed), "model.") for seed in (0, 1)]
    first, other = (write(tmp_path / f"{i}.safetensors", state) for i, state in enumerate(states))
    record = pretrained.load("cifar10", file=first).identity()
    name = next(iter(download.SOURCES))
    learned = mock.Mock(model=record | {"file": str(tmp_path / "new" / name)}, t_start=None)
    learned.table = lambda schedule: jnp.zeros(3)
    monkeypatch.setattr(given.learning, "load", lambda path: learned)
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("a schedule chose where a download goes"))
    paths = [Path("s.json")]
    assert given.read(paths, here={"file": first})[1].settings.file == first
    for nowhere in (None, {}):
        with pytest.raises(FileNotFoundError, match=rf"s\.json: no file .*{name}, its network\.file; --weights says"):
            given.read(paths, here=nowhere)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="was learned for another model"):
        given.read(paths, here={"file": other})
    learned.model = record | {"predicts": "v"}
    with pytest.raises(ValueError, match=r"was learned for another model \w+: predicts v, here data$"):
        given.read(paths)
