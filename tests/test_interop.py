"""A table of plain numbers runs in other libraries, in ComfyUI's and k-diffusion's contract, and says what it lacks."""

import inspect
import json
import os
import shutil
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfyui_contract as contract
import jax.numpy as jnp
import numpy as np
import pytest
import samplers_of_k_diffusion
import torch
from jax.tree_util import Partial
from learned_anything import moved
from noise_schedules import SCHEDULES

import ld3_jax
from ld3_jax import interop, to_noise
from ld3_jax.interop.standalone.table import from_record
from ld3_jax.learning import load
from ld3_jax.schedules import VPDiscrete
from ld3_jax.solvers import Solver
from ld3_jax.solvers.record import noise_level
from ld3_jax.starts import starting_at

SOLVERS = [Solver("dpmpp", 4), Solver("unipc", 4), Solver("ipndm", 5), Solver("heun", 4)]
Z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
STANDALONE = Path("ld3_jax/interop/standalone")


def smooth(x, t, numpy):
    """Any network: its output depends on the state and on the time."""
    return numpy.tanh(x * (1.5 - t / (1 + t))) + 0.3 * numpy.cos(3 * x + 5 * t / (1 + t))


def in_jax(x, t, cond=None):
    return smooth(x, t, jnp)


def in_torch(x, t):
    return smooth(x, torch.as_tensor(t, dtype=x.dtype), torch)


def saved(tmp_path, schedule, solver, **how):
    learned = moved(schedule, solver, **how)
    learned.save(tmp_path / "schedule.json", schedule)
    return learned, interop.read(tmp_path / "schedule.json")


@pytest.mark.parametrize(
    ("name", "solver"),
    [*(("VPLinear", solver) for solver in SOLVERS), ("VELinear", SOLVERS[1]), ("RectifiedFlow", SOLVERS[0])],
    ids=str,
)
def test_the_loop_gives_jax_s_sample(tmp_path, name, solver):
    schedule = SCHEDULES[name]
    learned, table = saved(tmp_path, schedule, solver)
    x_T = jnp.asarray(schedule.prior_scale * Z)
    expected = learned.sample(in_jax, schedule, x_T)
    given = interop.solve(table, in_torch, torch.tensor(np.asarray(x_T)))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    assert len(table.t) == solver.nfe
    assert table.process == {"VP": "vp", "VE": "ve", "Re": "flow"}[name[:2]]


@pytest.mark.parametrize(
    ("output", "solver"),
    [
        ("noise", SOLVERS[0]),
        ("data", SOLVERS[2]),
        ("v", SOLVERS[0]),
        ("flow", SOLVERS[2]),
        ("reversed_flow", SOLVERS[0]),
    ],
    ids=str,
)
def test_the_loop_converts_what_a_network_predicts(tmp_path, output, solver):
    schedule = SCHEDULES["VPLinear"]
    learned, table = saved(tmp_path, schedule, solver)
    expected = learned.sample(to_noise(Partial(in_jax), schedule, output), schedule, jnp.asarray(Z))
    given = interop.solve(table, in_torch, torch.from_numpy(Z), output)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


def test_the_loop_takes_arrays_of_any_library(tmp_path):
    schedule = SCHEDULES["VPLinear"]
    learned, table = saved(tmp_path, schedule, SOLVERS[0])
    given = interop.solve(table, lambda x, t: smooth(x, np.float32(t), np), Z)
    np.testing.assert_allclose(given, learned.sample(in_jax, schedule, jnp.asarray(Z)), rtol=1e-4, atol=1e-4)


def test_a_file_with_a_table_is_read_as_before(tmp_path):
    learned, _ = saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    again = load(tmp_path / "schedule.json")
    np.testing.assert_array_equal(again.t, learned.t)
    np.testing.assert_array_equal(again.coefficients.predict, learned.coefficients.predict)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.pop("table"), "has no table of coefficients; save it with its noise schedule"),
        (lambda record: record["table"].pop("alpha"), r"lacks \['alpha'\]"),
        (lambda record: record["table"]["t"].pop(), "must have one length"),
        (lambda record: record["table"].update(prediction="v"), "must be 'noise' or 'data', got 'v'"),
        (lambda record: record["table"]["t"].__setitem__(0, float("nan")), "must be finite"),
        (lambda record: record["table"]["t"].__setitem__(0, "1"), "must be finite"),
        (lambda record: record["table"].update(t=5), "the table's t must be a list"),
        (lambda record: record["table"].update(predict_history=[1.0] * 4), "predict_history must be a list of lists"),
        (lambda record: record["table"]["t"].__setitem__(0, [1.0]), "must be finite"),
        (lambda record: record["table"]["t"].__setitem__(0, 10**400), "must be finite"),
        (lambda record: record["table"].update(process="VP"), r"process must be one of .* or null, got 'VP'"),
        (lambda record: record["table"].update(output="epsilon"), "output must be one of .* or null, got 'epsilon'"),
        (lambda record: record["table"].update(process="flow"), "alpha and sigma do not fit the process flow"),
        (lambda record: record["table"].update(prior_scale=-1), "the prior_scale is not positive"),
        (lambda record: record["table"]["alpha"].__setitem__(0, -0.1), "alpha and sigma do not fit"),
        (
            lambda record: [record["table"][name].reverse() for name in ("grid_alpha", "grid_sigma")],
            "the noise of grid_alpha and grid_sigma does not fall",
        ),
        (lambda record: record["table"]["predict_history"][0].__setitem__(1, 5.0), "to before the first call"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, damage, message):
    path = tmp_path / "schedule.json"
    saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as error:
        interop.read(path)
    assert str(path) in str(error.value)


def denoiser(schedule, calls):
    """k-diffusion's contract around the same network: data from x in units where alpha = 1, or of flows as it is."""
    flow = "RectifiedFlow" in str(schedule)

    def model(x, sigma, gain):
        level = float(sigma[0])
        calls.append(level)
        t = level if flow else float(schedule.inverse_lam(-jnp.log(jnp.float32(level))))
        state = x if flow else x * float(schedule.alpha(jnp.float32(t)))
        eps = gain * in_torch(state, t)
        return _data(schedule, state, eps, t)

    return model


def _data(schedule, x, eps, t):
    alpha, sigma = (float(f(jnp.float32(t))) for f in (schedule.alpha, schedule.sigma))
    return (x - sigma * eps) / alpha


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("VPLinear", SOLVERS[i]) for i in (0, 2, 3)),
        ("VPLinear", Solver("unipc", 4, last_sigma=0.0)),
        ("VELinear", SOLVERS[1]),
        ("RectifiedFlow", SOLVERS[0]),
    ],
    ids=str,
)
def test_the_sampler_of_k_diffusion_gives_jax_s_sample(tmp_path, name, solver):
    schedule = SCHEDULES[name]
    learned, table = saved(tmp_path, schedule, solver)
    x_T = jnp.asarray(schedule.prior_scale * Z)
    alpha_T, alpha_0 = (1, 1) if name == "RectifiedFlow" else (table.grid_alpha[0], table.grid_alpha[-1])
    calls, steps = [], []
    given = interop.sample_learned(
        denoiser(schedule, calls),
        torch.tensor(np.asarray(x_T)) / alpha_T,
        torch.tensor(table.levels),
        {"gain": 0.9},
        lambda info: steps.append((info["i"], float(info["sigma"]), info["denoised"].shape)),
        True,
        table=table,
    )
    expected = learned.sample(lambda x, t, cond: 0.9 * in_jax(x, t), schedule, x_T)
    np.testing.assert_allclose(alpha_0 * given, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    assert len(calls) == solver.nfe
    assert [step[0] for step in steps] == list(range(solver.n_steps))
    np.testing.assert_allclose([step[1] for step in steps], table.levels[:-1], rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: s[2:],
        lambda s: s.flip(0),
        lambda s: torch.cat([s[:-1], s.new_zeros(1)]),
        lambda s: 1.01 * s,
    ],
)
def test_the_sampler_refuses_other_sigmas(tmp_path, change):
    _, table = saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    with pytest.raises(ValueError, match=r"was learned for the sigmas .* got .* Learned sigmas .* \(a denoise of 1\)"):
        interop.sample_learned(in_torch, torch.zeros(1, 2), change(torch.tensor(table.levels)), table=table)


def plain_table(process, output, first, last):
    """Two Euler steps from one noise level to another, through their mean."""
    levels = [first, (first + last) / 2, last]
    alphas = {
        "vp": [1 / (1 + level**2) ** 0.5 for level in levels],
        "ve": [1.0] * 3,
        "flow": [1 - level for level in levels],
    }[process]
    sigmas = levels if process == "flow" else [level * alpha for level, alpha in zip(levels, alphas, strict=True)]
    known = {"prediction": "data", "process": process, "train_steps": None, "output": output, "prior_scale": 1.0}
    columns = {"t": levels[:2], "alpha": alphas[:2], "sigma": sigmas[:2], "grid_alpha": alphas, "grid_sigma": sigmas}
    rows = {"correct_x": [1.0] * 2, "correct_base": [0.0] * 2, "correct_history": [[0.0]] * 2}
    steps = {"predict_base": [0.5] * 2, "predict_history": [[0.5]] * 2}
    return from_record({**known, **columns, **rows, **steps})


def run(table, model, **given):
    """Two values, from 0 to wherever the model leads."""
    return interop.sample_learned(
        model, torch.zeros(1, 2), torch.tensor(table.levels), given, disable=True, table=table
    )


def of_comfyui(of_range, of_prediction, *ends):
    """What a sampler function of ComfyUI gets, around a network whose data are 0."""
    sampling = contract.model_sampling(of_range, of_prediction, *ends)
    return contract.KSamplerX0Inpaint(contract.Guider(sampling, lambda x, sigma: 0 * x), None)


SD, ZERO_SNR, FLOWS, SVD, GALAXY = (14.6146, 0.0292), (4518.8, 0.0292), (1.0, 0.003), (700.0, 0.002), (80.0, 0.002)
EPS, V = (contract.ModelSamplingDiscrete, contract.EPS), (contract.ModelSamplingDiscrete, contract.V_PREDICTION)
CONST = (contract.ModelSamplingDiscreteFlow, contract.CONST)
OF_EDM = (contract.ModelSamplingContinuousEDM, contract.EDM)
OF_SVD = (contract.ModelSamplingContinuousEDM, contract.V_PREDICTION)
COSMOS = (contract.ModelSamplingContinuousEDM, contract.COSMOS_RFLOW)


@pytest.mark.parametrize(
    ("process", "output", "ends", "kind", "range_"),
    [
        ("vp", "noise", SD, CONST, FLOWS),  # Stable Diffusion's on SD3, and the other way round
        ("vp", None, SD, CONST, FLOWS),
        ("flow", "flow", (0.999, 0.001), EPS, SD),
        ("flow", None, (0.999, 0.001), V, SD),
        ("ve", "score", GALAXY, EPS, SD),
        ("ve", None, SD, EPS, SD),
        ("ve", "data", GALAXY, CONST, FLOWS),
        ("vp", "noise", SD, V, ZERO_SNR),
        ("vp", None, SD, V, ZERO_SNR),
        ("vp", "noise", SD, V, SD),
        ("vp", "v", SD, EPS, SD),
        ("vp", "data", SD, EPS, SD),
        ("vp", "noise", SD, (contract.ModelSamplingDiscrete, contract.X0), SD),
        ("vp", "noise", SD, EPS, (157.4, 0.01)),
        ("vp", None, (14.6146, 0.001), EPS, (14.6146, 8.0)),  # asks at a level below the network's least
        ("vp", "v", SD, OF_SVD, SVD),
        ("flow", "flow", (0.999, 0.001), OF_EDM, GALAXY),
        ("flow", "flow", (0.999, 0.001), COSMOS, GALAXY),
        ("flow", "flow", (0.5, 0.001), CONST, FLOWS),
        ("flow", "flow", (0.999, 0.001), (contract.NoisyFlow, contract.CONST), FLOWS),
        ("vp", "noise", SD, (contract.ModelSamplingDiscrete, contract.LCM), SD),
        ("vp", None, SD, (contract.ModelSamplingDiscrete, contract.IMG_TO_IMG), SD),
        ("vp", "v", ZERO_SNR, (contract.ModelSamplingDiscrete, contract.V_PREDICTION_DDPM), ZERO_SNR),
    ],
)
def test_the_sampler_refuses_a_model_of_another_kind(process, output, ends, kind, range_):
    model = of_comfyui(*kind, *range_)
    model.inner_model.denoiser = None
    table = plain_table(process, output, *ends)
    with pytest.raises(
        ValueError, match=f"for a model of process {process}.* got one of process .*: take that"
    ) as error:
        run(table, model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("process", "output", "ends", "kind", "range_"),
    [
        ("vp", "noise", SD, EPS, SD),
        ("vp", None, SD, EPS, SD),
        ("vp", None, SD, V, SD),
        ("vp", "v", ZERO_SNR, V, ZERO_SNR),
        ("flow", "flow", (0.999, 0.001), CONST, FLOWS),
        ("flow", "reversed_flow", (0.999, 0.0), CONST, FLOWS),  # ComfyUI gives data
        ("ve", "data", SVD, OF_SVD, SVD),
        ("vp", "v", SVD, OF_SVD, SVD),
        ("ve", "score", GALAXY, OF_EDM, GALAXY),
    ],
)
def test_the_sampler_takes_the_model_that_it_was_learned_for(process, output, ends, kind, range_):
    table = plain_table(process, output, *ends)
    model = of_comfyui(*kind, *range_)
    assert not run(table, model, denoise_mask=None, model_options={}, seed=0).any()


class Own(SimpleNamespace):
    """A user's own model, or k-diffusion's by its class; what it says is given."""

    def __call__(self, x, sigma):
        return 0 * x


class DiscreteEpsDDPMDenoiser(Own):
    pass


class CompVisDenoiser(DiscreteEpsDDPMDenoiser):
    pass


class CompVisVDenoiser(type("DiscreteVDDPMDenoiser", (Own,), {})):
    pass


class VDenoiser(Own):
    pass


ENDS = {"sigma_max": torch.tensor(SD[0]), "sigma_min": torch.tensor(SD[1])}
TABLES = {
    "eps": ("vp", "noise", *SD),
    "v": ("vp", "v", *SD),
    "galaxy": ("ve", "score", *GALAXY),
    "flow": ("flow", "flow", 0.999, 0.001),
}


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (CompVisDenoiser(**ENDS), {"eps"}),
        (CompVisVDenoiser(**ENDS), {"v"}),
        (Own(inner_model=Own(inner_model=CompVisDenoiser(**ENDS))), {"eps"}),  # guidance around it
        (CompVisDenoiser(sigma_max=157.4, sigma_min=0.01), set()),
        (VDenoiser(sigma_data=1.0), {"v"}),
        (Own(sigma_data=0.5), {"eps", "v", "galaxy"}),  # Karras' preconditioning
        (Own(sigma_data=0.5, sigma_max=float("inf"), sigma_min=0.0), {"eps", "v", "galaxy"}),
        (Own(sigma_max=100.0, sigma_min=0.002), set(TABLES)),
        (Own(sigma_max=50.0, sigma_min=0.02), {"eps", "v", "flow"}),
        (Own(), set(TABLES)),
    ],
)
def test_what_a_model_of_k_diffusion_says_is_held_against_the_table(model, takes):
    for name, case in TABLES.items():
        table = plain_table(*case)
        if name in takes:
            assert not run(table, model).any()
        else:
            with pytest.raises(ValueError, match="it was learned for a model of"):
                run(table, model)


def test_the_sampler_refuses_a_noise_schedule_that_it_does_not_know(tmp_path):
    _, table = saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    table = table._replace(process=None)
    with pytest.raises(ValueError, match="knows noise schedules"):
        interop.sample_learned(in_torch, torch.zeros(1, 2), torch.tensor(table.levels), table=table)


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """ComfyUI's modules, and the folder's nodes by what they return."""
    for name, module in contract.modules(tmp_path / "models").items():
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    (tmp_path / "models" / "ld3" / "sub").mkdir(parents=True)
    folder = tmp_path / "custom.nodes" / "ld3"
    shutil.copytree(STANDALONE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert not [path for path in folder.rglob("*.py") if "import ld3_jax" in path.read_text()]
    found = {node.RETURN_TYPES[0]: node for node in contract.nodes(folder).values()}
    yield SimpleNamespace(folder=folder, models=tmp_path / "models" / "ld3", **found)
    for name in set(sys.modules) - before:
        if "custom_x_nodes" in name:
            del sys.modules[name]


def made(node, schedule):
    return getattr(node(), node.FUNCTION)(schedule=schedule)[0]


def test_the_folder_alone_is_a_node_of_comfyui(comfyui):
    schedule = SCHEDULES["VPLinear"]
    _, table = saved(comfyui.models, schedule, SOLVERS[0])
    sigmas, sampler = made(comfyui.SIGMAS, "schedule.json"), made(comfyui.SAMPLER, "schedule.json")
    np.testing.assert_allclose(sigmas, table.levels, rtol=1e-6)
    sampling = contract.model_sampling(*EPS, sigmas[0], 0.01)
    guider = contract.Guider(sampling, lambda x, sigma: denoiser(schedule, [])(x, sigma, 1.0))
    z = torch.from_numpy(Z)
    given = sampler.sample(guider, sigmas, {"model_options": {}, "seed": 0}, None, z, 0 * z, disable_pbar=True)
    expected = interop.sample_learned(
        denoiser(schedule, []),
        z / table.grid_alpha[0],
        torch.tensor(table.levels),
        {"gain": 1.0},
        disable=True,
        table=table,
    )
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a denoise of 1"):
        sampler.sample(guider, sigmas[2:], {"model_options": {}, "seed": 0}, None, z, 0 * z, disable_pbar=True)


@pytest.mark.parametrize(
    ("name", "kind", "ends"), [("VPLinear", EPS, (152.167, 0.0104)), ("RectifiedFlow", CONST, (1.0, 0.001))]
)
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[3]], ids=str)
def test_the_nodes_start_from_an_image_where_that_was_learned(comfyui, name, kind, ends, solver):
    schedule, image = SCHEDULES[name], np.linspace(-1, 1, Z.size, dtype=np.float32).reshape(Z.shape)
    below = starting_at(schedule, strength=0.6)
    learned, _ = saved(comfyui.models, below, solver)
    guider = contract.Guider(contract.model_sampling(*kind, *ends), partial(denoiser(schedule, []), gain=1.0))
    sigmas, sampler = made(comfyui.SIGMAS, "schedule.json"), made(comfyui.SAMPLER, "schedule.json")
    assert float(sigmas[0]) == pytest.approx(noise_level(schedule, 0.6), rel=1e-5)

    def run(sampler, sigmas, latent):
        extra = {"model_options": {}, "seed": 0}
        return sampler.sample(guider, sigmas, extra, None, *map(torch.from_numpy, (Z, latent)), disable_pbar=True)

    t, last = jnp.float32(0.6), jnp.float32(schedule.t_min)
    x_s = schedule.alpha(t) * image + schedule.sigma(t) * Z
    expected = learned.sample(in_jax, schedule, x_s) / schedule.alpha(last)  # in units where alpha = 1; so flows' here
    np.testing.assert_allclose(run(sampler, sigmas, image), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"from an image with noise .*, below the full .*, got an empty latent"):
        run(sampler, sigmas, 0 * image)
    full = moved(schedule, solver)
    full.save(comfyui.models / "full.json", schedule)
    all_sigmas = made(comfyui.SIGMAS, "full.json")
    with pytest.raises(ValueError, match=r"split off; it was learned from an image .*\(a denoise below 1\)"):
        run(sampler, all_sigmas, image)
    for less in (sigmas, all_sigmas[1:]):
        with pytest.raises(ValueError, match=r"it was learned from full noise \(a denoise of 1\)"):
            run(made(comfyui.SAMPLER, "full.json"), less, image)


OF_SD = VPDiscrete(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


@pytest.mark.parametrize(
    ("schedule", "kind", "ends"),
    [(OF_SD, EPS, SD), (OF_SD, EPS, (1.001 * SD[0], SD[1])), (SCHEDULES["RectifiedFlow"], CONST, (1.0, 0.001))],
    ids=["vp", "vp, other digits", "flow"],
)
def test_the_nodes_give_jax_s_sample_from_full_noise(comfyui, schedule, kind, ends):
    learned, _ = saved(comfyui.models, schedule, SOLVERS[0])
    guider = contract.Guider(contract.model_sampling(*kind, *ends), partial(denoiser(schedule, []), gain=1.0))
    sigmas, sampler = made(comfyui.SIGMAS, "schedule.json"), made(comfyui.SAMPLER, "schedule.json")
    z, extra = torch.from_numpy(Z), {"model_options": {}, "seed": 0}
    given = sampler.sample(guider, sigmas, extra, None, z, 0 * z, disable_pbar=True)
    expected = learned.sample(in_jax, schedule, jnp.asarray(schedule.prior_scale * Z)) / schedule.alpha(
        jnp.float32(schedule.t_min)
    )
    np.testing.assert_allclose(given, expected, atol=2e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("name", "kind", "most"), [("VPLinear", EPS, 152.167), ("RectifiedFlow", CONST, 1.0)])
def test_inpainting_keeps_what_the_mask_keeps(comfyui, name, kind, most):
    schedule = SCHEDULES[name]
    saved(comfyui.models, starting_at(schedule, strength=0.6), SOLVERS[3])
    guider = contract.Guider(contract.model_sampling(*kind, most, 0.001), partial(denoiser(schedule, []), gain=1.0))
    sigmas, sampler = made(comfyui.SIGMAS, "schedule.json"), made(comfyui.SAMPLER, "schedule.json")
    z, image = torch.from_numpy(Z), torch.linspace(-1, 1, Z.size).reshape(Z.shape)

    def run(mask):
        extra = {"model_options": {}, "seed": 0}
        return sampler.sample(guider, sigmas, extra, None, z, image, denoise_mask=mask, disable_pbar=True)

    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(Z.shape)
    given = run(mask)
    torch.testing.assert_close(given[:, :2], image[:, :2])
    torch.testing.assert_close(given[:, 2:], run(None)[:, 2:])


def test_a_start_is_of_the_model_s_own_range(tmp_path):
    _, table = saved(tmp_path, starting_at(SCHEDULES["VPLinear"], strength=0.6), SOLVERS[0])
    given = {"denoise_mask": None, "model_options": {}, "seed": 0}
    assert run(table, of_comfyui(*EPS, 152.167, 0.0104), **given).isfinite().all()
    for most in (14.6, table.levels[0]):
        with pytest.raises(ValueError, match=r"for a model of process vp, output None, sigma from 152\.17"):
            run(table, of_comfyui(*EPS, most, 0.0104), **given)


def test_the_nodes_keep_comfyui_s_conventions(comfyui):
    saved(comfyui.folder, SCHEDULES["VPLinear"], SOLVERS[0])
    for place in (comfyui.models / "other.json", comfyui.models / "sub" / "third.json"):
        shutil.copy(comfyui.folder / "schedule.json", place)
    (comfyui.models / "notes.txt").touch()
    for node, category in ((comfyui.SIGMAS, "schedulers"), (comfyui.SAMPLER, "samplers")):
        ((argument, (choices, options)),) = node.INPUT_TYPES()["required"].items()
        assert (argument, choices) == ("schedule", ["other.json", "schedule.json", str(Path("sub", "third.json"))])
        assert options["tooltip"]
        assert node.DESCRIPTION
        assert f"sampling/custom_sampling/{category}" == node.CATEGORY
        # Other paths, as in workflows of before there were choices; and what another node gives, not there yet.
        for path in (*choices, str(comfyui.models / "other.json"), "../ld3/schedule.json", None):
            assert node.VALIDATE_INPUTS(schedule=path) is True
        assert made(node, str(comfyui.models / "other.json")) is not None
        # ComfyUI does not check a linked input's type where it is asked for.
        assert "input_types" in inspect.signature(node.VALIDATE_INPUTS).parameters


@pytest.mark.parametrize("schedule", ["", " ", ".", "..", "sub", "missing.json", "/", "undefined", 5])
def test_a_schedule_that_is_not_there_is_refused_before_anything_runs(comfyui, schedule):
    message = comfyui.SIGMAS.VALIDATE_INPUTS(schedule=schedule)
    assert message == f"no schedule {schedule!r}: put a schedule.json into {comfyui.models} or {comfyui.folder}"
    (comfyui.models / "list.json").write_text("[]")
    assert "has no table" in comfyui.SAMPLER.VALIDATE_INPUTS(schedule="list.json")


def test_a_file_that_was_replaced_has_changed(comfyui):
    for node in (comfyui.SIGMAS, comfyui.SAMPLER):
        saved(comfyui.models, SCHEDULES["VPLinear"], SOLVERS[0])
        before = node.IS_CHANGED(schedule="schedule.json")
        assert node.IS_CHANGED(schedule="schedule.json") == before
        times = (comfyui.models / "schedule.json").stat()
        saved(comfyui.models, SCHEDULES["VPLinear"], SOLVERS[0], seed=1)
        os.utime(comfyui.models / "schedule.json", ns=(times.st_atime_ns, times.st_mtime_ns))
        assert node.IS_CHANGED(schedule="schedule.json") != before
        linked = node.IS_CHANGED(schedule=None)
        assert linked != linked


def test_a_clone_of_the_repository_is_a_node_of_comfyui_too(comfyui, tmp_path):
    clone = tmp_path / "custom.nodes" / "ld3-jax"
    shutil.copytree(STANDALONE, clone / STANDALONE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("__init__.py", clone)  # and no ld3_jax/__init__.py, which would need JAX
    assert contract.nodes(clone).keys() == {"LD3LearnedSampler", "LD3LearnedSigmas"}


def test_the_registry_s_file_has_this_version_and_what_it_asks_for():
    record = tomllib.loads((STANDALONE / "pyproject.toml").read_text())
    assert record["project"]["version"] == ld3_jax.__version__
    assert {"name", "description", "license", "urls"} <= record["project"].keys()
    assert {"PublisherId", "DisplayName", "Icon"} <= record["tool"]["comfy"].keys()


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", b"[" * 100_000, b""])
def test_what_is_no_json_is_no_table(content, tmp_path):
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.json: not valid JSON"):
        interop.read(tmp_path / "s.json")


@pytest.mark.parametrize("path", ["", ".", "tests"])
def test_a_folder_is_no_table(path):
    with pytest.raises(ValueError, match=r"is a folder, not a schedule\.json"):
        interop.read(path)


def test_a_program_that_is_missing_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "ld3_jax.interop.diffusers", raising=False)
    with pytest.raises(ImportError) as error:
        _ = interop.LearnedScheduler
    assert str(error.value) == "interop.LearnedScheduler needs torch: pip install 'ld3-jax[torch]'"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'magic'"):
        _ = interop.magic


def test_dpmpp_2m_of_k_diffusion_is_ours_with_an_order_that_does_not_fall(tmp_path):
    sampling = samplers_of_k_diffusion.sampling()
    schedule = SCHEDULES["VELinear"]
    solver = Solver("dpmpp", 6, 2, lower_order_final=False)
    learned, table = saved(tmp_path, schedule, solver, network_times=0, coefficients=0)
    x_T = torch.from_numpy(schedule.prior_scale * Z)
    theirs = sampling.sample_dpmpp_2m(
        denoiser(schedule, []), x_T, torch.tensor(table.levels), {"gain": 1.0}, disable=True
    )
    expected = learned.sample(in_jax, schedule, jnp.asarray(x_T.numpy()))
    np.testing.assert_allclose(theirs, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
