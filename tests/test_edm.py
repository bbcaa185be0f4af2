"""The EDM networks: parity with the published code, their official sizes, conditions, precision, refusals."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import denoisers, solvers
from ld3_jax.networks import edm, weights

GOLDEN = Path(__file__).parent / "golden"
MODULES = {"SongUNet": edm.SongUNet, "DhariwalUNet": edm.DhariwalUNet}
# What concerns training alone, or is taken from the image.
NOT_ATTRIBUTES = ("model_type", "img_resolution", "img_channels", "decoder_type", "dropout")


def network(golden):
    config = ast.literal_eval(str(golden["config"]))
    attributes = {key: value for key, value in config.items() if key not in NOT_ATTRIBUTES}
    module = MODULES[config["model_type"]](**{k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()})
    return edm.Network(module, config["img_resolution"])


def published_arrays(golden):
    arrays = {key.removeprefix("state/"): golden[key] for key in golden.files if key.startswith("state/")}
    if not arrays:  # two files hold, to stay small, only the names and shapes of arrays that were drawn like this
        rng = np.random.RandomState(0)
        for name, shape in zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True):
            noise = rng.standard_normal([int(n) for n in shape.split()]).astype(np.float32)
            inputs, is_scale = np.prod(noise.shape[1:]), "norm" in name and name.endswith("weight")
            arrays[name] = noise / np.float32(np.sqrt(inputs)) if noise.ndim > 1 else np.float32(0.1) * noise + is_scale
    return arrays


@pytest.fixture(scope="module", params=["ddpmpp", "ncsnpp", "classes", "adm"])
def golden(request):
    with np.load(GOLDEN / f"edm_{request.param}.npz") as file:
        yield file


@pytest.fixture(autouse=True, scope="module")
def each_network_is_compiled_once():
    """Whatever wraps a network; modules are equal by value."""
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES.values():
            patch.setattr(module, "apply", jax.jit(module.apply, static_argnums=0))
        yield


def evaluate(model, golden):
    """A model on each image at its own noise level, which it gets as the scalar that a solver gives; NCHW."""
    x, sigma = jnp.asarray(golden["x"]).transpose(0, 2, 3, 1)[:, None], jnp.asarray(golden["sigma"])
    labels = jnp.asarray(golden["label"])[:, None] if "label" in golden else [None] * len(x)
    with jax.default_matmul_precision("highest"):
        output = [model(*given) for given in zip(x, sigma, labels, strict=True)]
    return np.moveaxis(np.concatenate(output), -1, 1)


def test_a_data_predicting_solver_gets_the_published_denoiser(golden):
    model, schedule, _ = edm.from_state(network(golden), published_arrays(golden), "golden")
    x, sigma = golden["x"], golden["sigma"].reshape(-1, 1, 1, 1)
    network_s_part = np.abs(golden["D"] - 0.25 / (sigma**2 + 0.25) * x)
    error = np.abs(evaluate(denoisers.convert(model, schedule, "data"), golden) - golden["D"])
    assert error.max() < 2e-4 * network_s_part.max()
    # Were D converted to noise and back, rounding at the largest noise would cost up to 160 times as much. (In NCSN++
    # the Fourier features of the noise level alone, of frequencies about 100, cost more.)
    assert sigma[0] == 80.0
    if "fourier" not in str(golden["config"]):
        assert error[0].max() < 2e-6 * network_s_part[0].max()


@pytest.mark.parametrize(
    ("class_name", "array"), [("EDMPrecond", "D"), ("VPPrecond", "D_vp"), ("training.networks.VEPrecond", "D_ve")]
)
def test_the_noise_prediction_is_that_of_the_published_denoiser(class_name, array):
    with np.load(GOLDEN / "edm_ddpmpp.npz") as golden:
        net = edm.preconditioned_as(network(golden), {"class_name": class_name, "img_resolution": 16}, "golden")
        eps = evaluate(edm.from_state(net, published_arrays(golden), "golden")[0], golden)
        published = (golden["x"] - golden[array]) / golden["sigma"].reshape(-1, 1, 1, 1)
    assert (np.abs(eps - published).max((1, 2, 3)) < 2e-4 * np.abs(published).max((1, 2, 3))).all()


def test_another_deviation_of_the_data_is_honoured():
    net = dataclasses.replace(edm.shrink(edm.NETWORKS["cifar10"]), size=8)
    config = {"class_name": "EDMPrecond", "sigma_data": 0.8}
    assert edm.preconditioned_as(net, {}, "a file") == net
    other = edm.preconditioned_as(net, config, "a file")
    assert other == dataclasses.replace(net, sigma_data=0.8)
    model, schedule, shape = edm.from_random(other)
    params = {"params": jax.tree.map(jnp.asarray, weights.random(edm.shapes(net)))}
    x, sigma = jnp.asarray(np.random.default_rng(0).standard_normal((1, *shape)), jnp.float32), jnp.asarray(2.0)
    denoised = denoisers.convert(model, schedule, "data")(x, sigma)
    total = 0.8**2 + 2.0**2
    output = net.module.apply(params, x * total**-0.5, jnp.log(sigma) / 4, None)
    np.testing.assert_allclose(denoised, 0.8**2 / total * x + 1.6 * total**-0.5 * output, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "iDDPMPrecond"}, r"a file: preconditioning must be one of .*'VPPrecond'.* is iDDPMPrecond"),
        ({"class_name": "EDMPrecond", "sigma_data": "0.5"}, r"sigma_data must be a number, got '0\.5'"),
        ({"class_name": "VPPrecond", "beta_d": 10.0}, r"a file: VPPrecond with \{'beta_d': 10.0\}; only .*19\.9"),
    ],
)
def test_a_file_of_another_preconditioning_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        edm.preconditioned_as(edm.NETWORKS["cifar10"], config, "a file")


def test_the_official_counts_of_parameters():
    def count(name):
        return weights.count(edm.shapes(edm.NETWORKS[name]))

    assert count("cifar10") == 55_733_891
    assert count("ffhq64") == 61_805_571
    assert edm.NETWORKS["ffhq64"] == edm.NETWORKS["afhqv2_64"]
    assert count("imagenet64") == 295_899_267
    # The official count leaves out the frequencies, which are not trained.
    assert count("cifar10_ve") == 56_397_827 + 128


def test_labels_and_the_augmentation_matter_and_none_is_zeros():
    net = edm.shrink(edm.NETWORKS["imagenet64"])
    module = net.module.clone(augment_dim=9)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *net.shape)), jnp.float32)
    params = jax.tree.map(jnp.asarray, weights.random(weights.abstract(module, x, jnp.zeros(()))))
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
    labels, numbers, noise = jnp.eye(2, module.label_dim), jnp.ones((2, 9)), jnp.full(2, 0.3)
    outputs = [
        apply(x, noise[0]),
        apply(x, noise, 0 * labels, 0 * numbers),
        apply(x, noise, labels, 0 * numbers),
        apply(x, noise, labels[::-1], 0 * numbers),
        apply(x, noise, 0 * labels, numbers),
    ]
    scale = np.abs(outputs[0]).max()
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-4 * scale
    for i, j in ((0, 2), (2, 3), (0, 4)):
        assert np.abs(outputs[i] - outputs[j]).max() > 1e-3 * scale


def test_bfloat16_inside_is_near_and_float32_outside():
    net = edm.shrink(edm.NETWORKS["cifar10_ve"])
    x, sigma = jnp.asarray(np.random.default_rng(0).standard_normal((2, *net.shape)), jnp.float32), jnp.asarray(0.5)
    full, half = (
        jax.jit(edm.from_random(net, dtype=dtype)[0])(x, sigma, None) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    assert 1e-5 < np.abs(half - full).max() / np.abs(full).max() < 0.1


def test_a_shrunken_model_samples_with_its_weights_as_leaves_and_a_finite_gradient():
    net = edm.shrink(edm.NETWORKS["cifar10_cond"])
    model, schedule, shape = edm.from_random(net)
    assert (schedule.t_min, schedule.t_max, shape) == (0.002, 80.0, (16, 16, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == weights.count(edm.shapes(net))

    def energy(t, model, x_T):
        return jnp.sum(solvers.sample(model, schedule, x_T, t, cond=jnp.eye(2, 10)) ** 2)

    x_T = 80 * jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), jnp.float32)
    gradient = jax.jit(jax.grad(energy))(jnp.asarray([80.0, 5.0, 0.5, 0.002]), model, x_T)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1:-1]).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("model.enc.16x16_block0.norm0.bias"),
            r"golden lacks: model\.enc\.16x16_block0\.norm0\.bias",
        ),
        (lambda arrays: arrays.update({"model.dec.more": np.zeros(3)}), r"golden has unknown arrays: model\.dec\.more"),
        (
            lambda arrays: arrays.update({"model.map_layer0.bias": np.zeros(3)}),
            r"model\.map_layer0\.bias has the shape \(3,\)",
        ),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_wrong_arrays_are_refused_by_name(change, message):
    with np.load(GOLDEN / "edm_ddpmpp.npz") as golden:
        net, arrays = network(golden), published_arrays(golden)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        edm.from_state(net, arrays, "golden")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_type": "learned"}, r"embedding_type must be one of \['fourier', 'positional'\], got 'learned'"),
        ({"encoder_type": "skip"}, r"encoder_type must be one of \['residual', 'standard'\], got 'skip'"),
        ({"channel_mult": (1, 1, 1, 1, 1, 1)}, r"multiples of 32, got 16"),
    ],
)
def test_what_no_network_has_is_refused(change, message):
    net = edm.shrink(edm.NETWORKS["cifar10"])
    with pytest.raises(ValueError, match=message):
        edm.shapes(dataclasses.replace(net, module=net.module.clone(**change)))


def test_an_unknown_preconditioning_and_labels_of_another_width_are_refused():
    net = edm.shrink(edm.NETWORKS["cifar10"])
    with pytest.raises(ValueError, match=r"preconditioning must be one of \['edm', 've', 'vp'\], got 'iddpm'"):
        edm.from_random(dataclasses.replace(net, preconditioning="iddpm"))
    model, _, shape = edm.from_random(net)
    with pytest.raises(ValueError, match=r"labels must be one-hot of 0 classes .* got 10"):
        jax.eval_shape(model, jnp.zeros((1, *shape)), jnp.ones(()), jnp.zeros((1, 10)))
