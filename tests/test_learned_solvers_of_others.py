"""Learned solvers of others: samples of their own code from their files, and what is refused of files that are not."""

import json
import pickle
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from mains import main

from ld3_jax import grid, interop, learning
from ld3_jax.interop import imported_solvers
from ld3_jax.interop.imported_solvers import holds_solver, read_solver
from ld3_jax.networks.latent import scaled_linear
from ld3_jax.schedules import RectifiedFlow, VELinear, VPLinear
from ld3_jax.solvers import Solver, expand, make_table

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "solvers_of_others.npz"))
SD, EDM, FLOW = scaled_linear(0.00085, 0.012), VELinear(), RectifiedFlow()
CASES = {  # noise schedule, network calls
    "epd_sd": (SD, 30),
    "epd_flux": (FLOW, 24),
    "epd_ipndm": (EDM, 6),
    "dyweight": (EDM, 4),
    "dyweight_sd": (SD, 5),
    "dyweight_flux": (FLOW, 3),
    "neural_flow": (FLOW, 5),
    "neural_vp": (VPLinear(), 5),
    "generalized_edm_4": (EDM, 5),
    "generalized_sd_5": (SD, 5),
}


class Persistent:
    """An object as EDM's `torch_utils.persistence` pickles it: a function by name, and a dict with the state."""

    def __init__(self, kind, state):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": kind,
            "state": state,
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(autouse=True, scope="module")
def modules_of_theirs():
    module = types.ModuleType("torch_utils.persistence")

    def rebuild(meta):
        raise AssertionError("code of a file was run")

    rebuild.__module__, rebuild.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = rebuild
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module}
    yield
    del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]


def of_case(name):
    prefix = f"{name}/numbers/"
    numbers = {key.removeprefix(prefix): GOLDEN[key].copy() for key in GOLDEN if key.startswith(prefix)}
    return numbers, json.loads(str(GOLDEN[f"{name}/settings"]))


def written(folder, name, change=lambda numbers, settings: None):
    """A file of a case as their programs write it, perhaps with other content."""
    numbers, settings = of_case(name)
    change(numbers, settings)
    tensors = {key: torch.nn.Parameter(torch.tensor(array)) for key, array in numbers.items()}
    family = name.split("_")[0]
    path = Path(folder, name).with_suffix(".py" if family == "neural" else ".pt" if "flux" in name[4:] else ".pkl")
    if family == "neural":
        lists = ", ".join(f"{key}={array.tolist()}" for key, array in numbers.items())
        data = "FM_DATA" if name == "neural_flow" else "DDPM_DATA"
        path.write_text(f"import torch\nraise SystemExit\nOF_SIT = dict(step5=dict({lists}))\n{data} = OF_SIT\n")
    elif name == "dyweight_flux":
        torch.save({**settings, **{key: torch.tensor(array) for key, array in numbers.items()}}, path)
    elif family == "generalized":
        path, shadow = path.with_suffix(".pt"), [torch.tensor(numbers[str(i)]) for i in range(len(numbers))]
        shadow.append(torch.zeros(3, 3))  # a discriminator's
        torch.save({"ema": {"decay": 0.999, "num_updates": 1, "shadow_params": shadow}, "step": 1}, path)
    else:
        mask = tensors.pop("mask", None)
        state = {"_parameters": tensors, "_buffers": {"mask": mask}, "_modules": {}, **settings}
        kind, key = ("EPD_predictor", "model") if family == "epd" else ("DyWeight_predictor", "predictor")
        loss = Persistent("DyWeight_loss", settings)
        path.with_suffix(".pkl").write_bytes(pickle.dumps({key: Persistent(kind, state), "loss_fn": loss}))
        path = path.with_suffix(".pkl")
    return path


def predicted(schedule, times):
    """The exact noise prediction of the golden mixture at some times, for NumPy."""
    factors = (np.asarray(one(jnp.asarray(times))) for one in (schedule.alpha, schedule.sigma))
    levels = dict(zip(times, zip(*factors, strict=True), strict=True))

    def network(x, t):
        alpha, sigma = levels[t]
        var = alpha**2 * GOLDEN["var"] + sigma**2
        away = x[:, None] - alpha * GOLDEN["mu"]
        logs = np.log(GOLDEN["weight"]) - 2 * np.log(var) - (away**2).sum(-1) / (2 * var)
        share = np.exp(logs - logs.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return sigma * ((share / var)[..., None] * away).sum(1)

    return network


def sampled(path, schedule, solver, folder):
    """Samples by the table in a schedule.json, which any program runs."""
    found, notes = read_solver(path, schedule, solver)
    learned = learning.Learned(solver, found, np.asarray(found.lam(schedule)))
    learned.save(folder / "theirs.json", schedule)
    table = interop.read(folder / "theirs.json")
    return interop.solve(table, predicted(schedule, table.t), schedule.prior_scale * GOLDEN["z"]), notes


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_their_own_code(name, tmp_path, float64):
    schedule, calls = CASES[name]
    solver = Solver("ddim" if schedule is FLOW else "ipndm", calls, 1)
    path = written(tmp_path, name)
    assert holds_solver(path)
    x_0, notes = sampled(path, schedule, solver, tmp_path)
    np.testing.assert_allclose(x_0, GOLDEN[f"{name}/x_0"], atol=3e-7)
    before = {"epd_ipndm": 5, "dyweight": 3, "dyweight_sd": 4, "generalized_edm_4": 4}
    said = [note for note in notes if "a call of weight 0 comes first" in note]
    assert [note.endswith(f"theirs are {before.get(name)}") for note in said] == [True] * (name in before)


@pytest.mark.parametrize("solver", [Solver("dpmpp", 4, 3), Solver("unipc", 4, 3)], ids=str)
def test_any_solver_with_one_call_a_step_becomes_theirs_in_single_precision_too(solver, tmp_path):
    x_0, _ = sampled(written(tmp_path, "dyweight"), EDM, solver, tmp_path)
    np.testing.assert_allclose(x_0, GOLDEN["dyweight/x_0"], atol=2e-5)


def test_what_was_read_is_a_start_of_learning(tmp_path):
    solver = Solver("ipndm", 4, 1)
    found, _ = read_solver(written(tmp_path, "dyweight"), EDM, solver)
    parametrisation = learning.WithCoefficients()
    again = parametrisation.discretization(parametrisation.init(found, EDM, solver), EDM, solver)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5), again, found)


def test_a_network_that_is_asked_beyond_its_range_is_asked_at_its_end_and_this_is_said(tmp_path):
    def further(numbers, settings):
        numbers["t_scale"][0] = 1.02

    _, notes = read_solver(written(tmp_path, "dyweight_sd", further), SD, Solver("ipndm", 4, 1))
    assert any("asked at its own ends, and not beyond at 14.91" in note for note in notes)


def put(where, key, value):
    """A change of a case's numbers or settings; a function changes what is there."""
    return lambda *both: both[where].__setitem__(key, value(both[where][key]) if callable(value) else value)


REFUSED = {
    "another model": ("dyweight", SD, None, r"for cifar10's model, whose noise is ve from 80 to 0\.002, and .* vp"),
    "a flow's model": ("epd_sd", FLOW, None, "for ms_coco's model, whose noise is vp"),
    "no flow": ("epd_flux", SD, None, "for noise of the kind flow, and this model's is vp"),
    "no flow of DyWeight": ("dyweight_flux", EDM, None, "for noise of the kind flow, and this model's is ve"),
    "unknown data": ("epd_sd", SD, put(1, "dataset_name", "cats"), "for the data 'cats'; known data are"),
    "vp where it is a flow": ("neural_flow", VPLinear(), None, "for noise of the kind flow"),
    "less noise": ("neural_vp", SD, None, "starts at the noise level .*, and the model at 14.6"),
    "a flow for GS": ("generalized_sd_5", FLOW, None, "for noise of the kind ve or vp, and this model's is flow"),
    "a new backend": ("epd_sd", SD, put(1, "backend", "wan"), r"must be one of \['ldm', 'sd3', 'flux'\], got 'wan'"),
    "far too large": ("generalized_sd_5", SD, put(0, "3", lambda a: 1e20 * a), "off by nan in single precision"),
    "NaN": ("epd_sd", SD, put(0, "r_params", lambda a: a * np.nan), "its r_params must be finite"),
    "NaN in a list": ("generalized_sd_5", SD, put(0, "3", lambda a: a * np.nan), "its coefficients must be finite"),
    "a shape": (
        "epd_sd",
        SD,
        put(0, "weight_s", lambda a: a[1:]),
        r"must be of shape \(10, 2\), got \(9, 2\)",
    ),
    "steps": ("dyweight", EDM, put(1, "num_steps", 1), "num_steps must be a whole number from 2 to 1000, got 1"),
    "steps of another": ("dyweight", EDM, put(1, "num_steps", 9), r"hybrid_weights must be of shape \(8, 8\)"),
    "a grid": ("dyweight", EDM, put(1, "schedule_type", "gits"), "schedule_type must be one of .*, got 'gits'"),
    "a student": ("epd_sd", SD, put(1, "sampler_stu", "dpm"), "sampler_stu must be epd or ipndm, got 'dpm'"),
    "rising levels": ("dyweight", EDM, put(0, "t_scale", np.array([0.5, 3.0, 0.9], "f4")), "here levels must fall"),
    "levels beyond": (
        "dyweight_sd",
        SD,
        put(0, "t_scale", lambda a: 2 * a),
        "asks the network at the .* 28.6",
    ),
    "a time that stands": (
        "neural_vp",
        VPLinear(),
        put(0, "timedeltas", lambda a: 0 * a),
        "must be above 0",
    ),
    "levels of none": ("epd_flux", FLOW, put(1, "backend_config", {}), "its sigma_max must be finite"),
    "an odd list": ("generalized_sd_5", SD, put(0, "7", np.ones(2)), "must be pairs of lists of 5 numbers, got 5"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_taken_is_refused_in_one_line(why, tmp_path):
    name, schedule, change, message = REFUSED[why]
    path = written(tmp_path, name, change or (lambda *_: None))
    with pytest.raises(ValueError, match=message) as caught:
        read_solver(path, schedule, Solver("ipndm", CASES[name][1], 1))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_number_of_calls_and_the_solver_must_be_theirs(tmp_path):
    path = written(tmp_path, "dyweight")
    with pytest.raises(ValueError, match=r"makes 4 network calls \(a call of weight 0 .*: solver.nfe must be 4, got 3"):
        read_solver(path, EDM, Solver("ipndm", 3, 1))
    for solver in (Solver("heun", 4), Solver("dpmpp", 4, last_sigma=0.0)):
        with pytest.raises(ValueError, match="one call a step and last_sigma None, got"):
            read_solver(path, EDM, solver)
    with pytest.raises(ValueError, match=r"it has solvers of \[5\] network calls, not of 4"):
        read_solver(written(tmp_path, "neural_vp"), VPLinear(), Solver("ipndm", 4, 1))


def test_the_command_writes_a_schedule_and_says_what_is_not_known(tmp_path):
    path, out = written(tmp_path, "generalized_sd_5"), tmp_path / "theirs.json"
    arguments = ["--config=configs/gaussian.py", f"--list={path}", f"--out={out}"]
    refused = main("from_list", *arguments, "--config.solver.nfe=4", check=False)
    assert refused.returncode == 1
    assert "it makes 5 network calls: solver.nfe must be 5, got 4" in refused.stderr
    assert not out.exists()
    said = main("from_list", *arguments, "--config.solver.nfe=5").stdout
    assert "the Generalized Solver: its file does not say for which model it was learned" in said
    assert learning.load(out).solver.nfe == 5


def test_a_file_that_names_code_is_refused_and_nothing_is_run(tmp_path):
    path, left = tmp_path / "evil.pkl", tmp_path / "left"

    class Evil:
        def __reduce__(self):
            return Path.touch, (left,)

    path.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ValueError, match=r"evil\.pkl: "):
        read_solver(path, EDM, Solver("ipndm", 4, 1))
    assert not left.exists()


def test_changes_that_lose_digits_are_refused():
    solver = Solver("ipndm", 4, 1)
    whole = expand(make_table(EDM, grid("edm", EDM, 4), solver=solver))
    check = imported_solvers._check_precision
    check(whole, whole, EDM, solver)
    with pytest.raises(ValueError, match=r"off by 0\.0005 in single precision; take a .* data, such as ddim"):
        check(whole._replace(initial=1.001 * whole.initial), whole, EDM, solver)


def test_damaged_files_and_other_files_are_refused(tmp_path):
    solver = Solver("ipndm", 4, 1)
    whole = written(tmp_path, "dyweight").read_bytes()
    path = tmp_path / "cut.pkl"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl: (cut short or damaged|neither)"):
            read_solver(path, EDM, solver)
    for held in ({"model": 3}, {"predictor": {}}, {"ema": {}}, {}):
        path.write_bytes(pickle.dumps(held))
        with pytest.raises(ValueError, match=r"cut\.pkl: no learned solver of EPD, DyWeight, .*it holds"):
            read_solver(path, EDM, solver)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"cut\.pkl: holds a list, not objects by name"):
        read_solver(path, EDM, solver)
    for text in ("def f(:", "FM_DATA = dict(step4=1)", "FM_DATA = dict(a=dict())", "x = 3"):
        (tmp_path / "numbers.py").write_text(text)
        with pytest.raises(ValueError, match=r"numbers\.py: (cut short or damaged|no learned solver)"):
            read_solver(tmp_path / "numbers.py", FLOW, solver)
    with pytest.raises(FileNotFoundError):
        read_solver(tmp_path / "nothing.pkl", EDM, solver)
    torch.save({"best_t_steps": torch.ones(4)}, tmp_path / "best_v2.pt")
    assert not holds_solver(tmp_path / "best_v2.pt")
