"""Families of pre-trained models: from files to a model, conditions, and what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import families, models
from experiments.families import Settings
from ld3_jax.networks import edm, latent, weights

PREFIXES = {"unet": "model.diffusion_model.", "autoencoder": "first_stage_model."}


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
    model = models.build(Settings("edm", "cifar10", file=file))
    assert same(model.noise, models.build(Settings("edm", "cifar10", random_weights=True)).noise)
    assert model.shape == small.shape
    assert model.draw_condition is None


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "first stage apart"])
def test_a_latent_model_comes_from_its_files(apart, tmp_path, monkeypatch):
    small = latent.shrink(latent.NETWORKS["lsun_bedroom"])
    monkeypatch.setitem(latent.NETWORKS, "lsun_bedroom", small)
    params = weights.random(latent.shapes(small))
    unet, first = (official(params[part], PREFIXES[part]) for part in PREFIXES)
    if apart:
        # The file of the first stage holds another U-Net, which must not be taken.
        first |= {name: 0 * array for name, array in unet.items()}
        files = {
            "file": write(tmp_path / "u.safetensors", unet),
            "first_stage": write(tmp_path / "f.safetensors", first),
        }
    else:
        files = {"file": write(tmp_path / "all.safetensors", unet | first)}
    model = models.build(Settings("latent", "lsun_bedroom", **files))
    random = models.build(Settings("latent", "lsun_bedroom", random_weights=True))
    assert same(model.noise, random.noise)
    assert same(model.decode, random.decode)


def test_classes_are_drawn_and_guidance_has_two_different_halves():
    plain = models.build(Settings("latent", "imagenet256", random_weights=True))
    guided = models.build(Settings("latent", "imagenet256", guidance=2.0, random_weights=True))
    cond = guided.draw_condition(jax.random.key(0), 2)
    assert jnp.abs(cond[0] - cond[1]).max() > 0.1
    x, t = jax.random.normal(jax.random.key(1), (2, *plain.shape)), jnp.asarray(0.7)
    none = latent.from_random(latent.shrink(latent.NETWORKS["imagenet256"])).embed(jnp.array([1000, 1000]))
    call = jax.jit(lambda model, cond: model(x, t, cond))
    conditional, unconditional = call(plain.noise, cond), call(plain.noise, none)
    assert jnp.abs(conditional - unconditional).max() > 1e-3
    np.testing.assert_allclose(call(guided.noise, cond), 2 * conditional - unconditional, atol=1e-4)
    assert models.identity(plain)["digest"] != models.identity(guided)["digest"]


def test_labels_of_a_pixel_model_are_one_hot():
    model = models.build(Settings("edm", "imagenet64", random_weights=True))
    labels = model.draw_condition(jax.random.key(0), 50)
    assert labels.shape == (50, 1000)
    assert jnp.all(labels.sum(-1) == 1)
    assert len(np.unique(labels.argmax(-1))) > 40


def test_each_prompt_is_drawn_once_before_any_comes_twice(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na ship\n")
    network = latent.shrink(latent.NETWORKS["stable_diffusion"])
    contexts = np.arange(3.0, dtype=np.float32).reshape(3, 1, 1) * np.ones(network.context_shape, np.float32)
    embedded = families.text.Embeddings(contexts, contexts[0])
    monkeypatch.setattr(families.text, "embed", lambda found, *_: embedded if len(found) == 3 else None)
    monkeypatch.setitem(latent.NETWORKS, "stable_diffusion", network)
    file = {
        name: array
        for part, params in weights.random(latent.shapes(network)).items()
        for name, array in official(params, PREFIXES[part]).items()
    }
    settings = Settings(
        "latent",
        "stable_diffusion",
        file=write(tmp_path / "sd.safetensors", file),
        prompts=str(prompts),
        text_encoder=str(tmp_path),
    )
    drawn = models.build(settings).draw_condition(jax.random.key(0), 6)[:, 0, 0]
    assert sorted(drawn[:3].tolist()) == sorted(drawn[3:].tolist()) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "edm", "name": "cifar100", "random_weights": True}, "must be one of .*'cifar10'.* got 'cifar100'"),
        (
            {"family": "edm", "name": "cifar10", "guidance": 2.0},
            "family 'edm' has no guidance: it must be 1.0, got 2.0",
        ),
        ({"family": "latent", "name": "lsun_bedroom", "guidance": 2.0, "random_weights": True}, "has no guidance"),
        ({"family": "galaxy", "name": "hsc32", "file": "x.pkl"}, "family 'galaxy' has no file"),
        ({"family": "latent", "name": "imagenet256", "prompts": "p.txt", "random_weights": True}, "has no prompts"),
        ({"family": "edm", "name": "cifar10"}, r"network\.file must name the file of the weights"),
        ({"family": "galaxy", "name": "hsc33"}, "survey must be one of .*'hsc32'.* got 'hsc33'"),
    ],
)
def test_what_a_family_does_not_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        models.build(Settings(**settings))


def test_a_missing_file_of_no_known_name_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"edm-cifar10-32x32-uncond-vp\.pkl"):
        models.build(Settings("edm", "cifar10", file=str(tmp_path / "mine.pkl")))


def test_text_needs_prompts_and_an_encoder():
    with pytest.raises(ValueError, match=r"network\.prompts must name a file of prompts"):
        models.build(Settings("latent", "stable_diffusion", file="not-read.ckpt"))
