"""A table of plain numbers runs in other libraries, in ComfyUI's and k-diffusion's contract, and says what it lacks."""

import importlib
import json
import shutil
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import samplers_of_k_diffusion
import torch
from jax.tree_util import Partial
from learned_anything import moved
from noise_schedules import SCHEDULES

from ld3_jax import interop, to_noise
from ld3_jax.learning import load
from ld3_jax.solvers import Solver

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
    "change", [lambda s: s[:-1], lambda s: torch.cat([s[:-1], s.new_zeros(1)]), lambda s: 1.01 * s]
)
def test_the_sampler_refuses_other_sigmas(tmp_path, change):
    _, table = saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    with pytest.raises(ValueError, match="it was learned for the sigmas"):
        interop.sample_learned(in_torch, torch.zeros(1, 2), change(torch.tensor(table.levels)), table=table)


def test_the_sampler_refuses_a_noise_schedule_that_it_does_not_know(tmp_path):
    _, table = saved(tmp_path, SCHEDULES["VPLinear"], SOLVERS[0])
    table = table._replace(process=None)
    with pytest.raises(ValueError, match="knows noise schedules"):
        interop.sample_learned(in_torch, torch.zeros(1, 2), torch.tensor(table.levels), table=table)


def test_the_folder_alone_is_a_node_of_comfyui(tmp_path, monkeypatch):
    schedule = SCHEDULES["VPLinear"]
    folder = tmp_path / "ld3"
    shutil.copytree(STANDALONE, folder)
    assert not [path for path in folder.rglob("*.py") if "import ld3_jax" in path.read_text()]
    _, table = saved(folder, schedule, SOLVERS[0])
    comfy = types.ModuleType("comfy")
    comfy.samplers = types.ModuleType("comfy.samplers")
    comfy.samplers.KSAMPLER = lambda function, extra_options: types.SimpleNamespace(f=function, options=extra_options)
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", comfy.samplers)
    spec = importlib.util.spec_from_file_location("custom_ld3", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_ld3", module)
    spec.loader.exec_module(module)
    nodes = module.NODE_CLASS_MAPPINGS
    assert nodes.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    made = {}
    for node in nodes.values():
        ((argument, (kind, options)),) = node.INPUT_TYPES()["required"].items()
        assert kind == "STRING"
        (made[node.RETURN_TYPES[0]],) = getattr(node(), node.FUNCTION)(**{argument: options["default"]})
    np.testing.assert_allclose(made["SIGMAS"], table.levels, rtol=1e-6)
    x = torch.from_numpy(Z)
    sampler = made["SAMPLER"]
    given = sampler.f(denoiser(schedule, []), x, made["SIGMAS"], {"gain": 1.0}, None, True, **sampler.options)
    expected = interop.sample_learned(
        denoiser(schedule, []), x, torch.tensor(table.levels), {"gain": 1.0}, disable=True, table=table
    )
    torch.testing.assert_close(given, expected)


def test_a_program_that_is_missing_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "ld3_jax.interop.diffusers", raising=False)
    with pytest.raises(ImportError) as error:
        _ = interop.LearnedScheduler
    assert str(error.value) == "interop.LearnedScheduler needs torch: pip install -r requirements-interop.txt"


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
