"""Lists for programs that take numbers: what they hold, what they lack, and what diffusers makes of them."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved
from noise_schedules import SCHEDULES

from ld3_jax import interop
from ld3_jax.interop import exported_lists as lists
from ld3_jax.interop.standalone.table import from_record
from ld3_jax.networks.latent import scaled_linear
from ld3_jax.schedules import VPDiscrete
from ld3_jax.solvers import Solver, solve, to_record

# diffusers makes arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Z = np.random.default_rng(0).normal(size=(4, 2, 1, 1)).astype(np.float32)
TIMES = {"network_times": 0, "coefficients": 0}
DISCRETE = VPDiscrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
SD, COSINE = scaled_linear(0.00085, 0.012), VPDiscrete(np.cos(np.linspace(0.01, 0.49, 1000) * np.pi) ** 2)
DPMPP, DDIM = Solver("dpmpp", 4, 2), Solver("ddim", 4)


def of(schedule, solver, output=None, **how):
    learned = moved(schedule, solver, **{**TIMES, **how})
    return learned, from_record(to_record(learned.table(schedule), schedule, learned.t, solver, output))


def data(x, t):
    """A data prediction, of either library's arrays."""
    numpy = torch if isinstance(x, torch.Tensor) else jnp
    return numpy.tanh(x * (1 - 0.3 * t)) * 0.8 + 0.1


def run(table):
    return np.asarray(solve(lambda x, t, cond: data(x, t), table, jnp.asarray(Z)))


def relative(given, expected):
    return float(np.sqrt(np.mean((np.asarray(given) - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("name", ["VPLinear", "VELinear", "RectifiedFlow"])
def test_sigmas_are_plain_decimals_of_the_levels(name):
    schedule = SCHEDULES[name]
    learned, table = of(schedule, DPMPP)
    t = learned.t
    levels = schedule.sigma(t) / (1 if name == "RectifiedFlow" else schedule.alpha(t))
    for last, expected in {"kept": levels, "zero": [*levels[:-1], 0], "dropped": levels[:-1]}.items():
        listed = lists.sigmas(learned, table, last)
        text = lists.text(listed.values)
        assert re.fullmatch(r"\d+\.\d+(, \d+\.\d+)*", text)
        np.testing.assert_allclose([float(word) for word in text.split(", ")], expected, rtol=1e-6)
        assert listed.solver.to_zero == (last != "kept")
        assert not listed.lost
        assert lists.text([table.levels[-1]]) in listed.notes[0]


def test_a_small_number_has_no_exponent():
    assert lists.text([1e-3, 2.5e-7, 80.0]) == "0.001, 0.00000025, 80.0"


@pytest.mark.parametrize(
    "solver", [Solver("dpmpp", 4, 3), Solver("ipndm", 4, 2), Solver("unipc", 4), Solver("heun", 5)]
)
def test_the_step_to_zero_gives_the_data_prediction(solver):
    schedule = SCHEDULES["VPLinear"]
    learned, table = of(schedule, solver)
    to_zero = lists.as_run(lists.sigmas(learned, table, "zero"), learned, schedule)
    seen = []

    def network(x, t):
        seen.append(np.asarray(data(jnp.asarray(x), t)))
        return seen[-1]

    loop = from_record(to_record(to_zero, schedule, learned.t, solver))
    given = interop.solve(loop, network, Z, "data")
    np.testing.assert_allclose(given, seen[-1], rtol=1e-4, atol=1e-5)


def test_an_order_that_a_program_does_not_lower_is_said_and_measured():
    schedule = SCHEDULES["VPLinear"]
    learned, table = of(schedule, DPMPP)
    listed = lists.sigmas(learned, table)
    assert "learn with lower_order_final False" in listed.notes[1]
    assert relative(run(lists.as_run(listed, learned, schedule)), run(learned.table(schedule))) > 1e-3
    kept = of(schedule, Solver("dpmpp", 4, 2, lower_order_final=False))
    listed = lists.sigmas(*kept)
    assert len(listed.notes) == 1
    assert relative(run(lists.as_run(listed, kept[0], schedule)), run(kept[0].table(schedule))) < 1e-6


@pytest.mark.parametrize("last", ["kept", "zero", "dropped"])
@pytest.mark.parametrize("solver", [DPMPP, Solver("heun", 5)], ids=str)
def test_a_list_to_zero_loses_nothing_of_what_was_learned_to_zero(solver, last):
    schedule = SCHEDULES["VPLinear"]
    learned, table = of(schedule, replace(solver, last_sigma=0.0))
    listed = lists.sigmas(learned, table, last)
    assert listed.values == table.levels[: len(listed.values)]
    assert listed.notes == ["the last step goes to 0, as it was learned"]
    assert relative(run(lists.as_run(listed, learned, schedule)), run(learned.table(schedule))) < 1e-6


def test_what_was_learned_and_is_not_in_the_list_is_named():
    for how, lost in [
        ({}, []),
        ({"coefficients": 0.01}, ["coefficients"]),
        ({"network_times": 0.1}, ["network times"]),
        ({"coefficients": 0.01, "network_times": 0.1}, ["coefficients", "network times"]),
    ]:
        assert lists.sigmas(*of(DISCRETE, DPMPP, **how)).lost == lost


@pytest.mark.parametrize(
    ("make", "schedule", "solver", "message"),
    [
        (lists.diffusers_timesteps, DISCRETE, Solver("unipc", 4), "runs dpmpp or ddim, got unipc"),
        (lists.diffusers_timesteps, SCHEDULES["VPLinear"], DPMPP, "network of discrete steps"),
        (lists.diffusers_timesteps, SCHEDULES["VELinear"], DPMPP, r"kinds \['vp'\], got 've'"),
        (lists.diffusers_timesteps, DISCRETE, Solver("dpmpp", 15), "learn with lower_order_final False"),
        (lists.diffusers_sigmas, DISCRETE, DPMPP, "make ddim's steps"),
        (lists.diffusers_sigmas, DISCRETE, Solver("euler", 4), "make ddim's steps"),
        (lists.diffusers_sigmas, SCHEDULES["VELinear"], DDIM, r"kinds \['vp', 'flow'\], got 've'"),
    ],
)
def test_what_a_scheduler_would_do_otherwise_is_refused(make, schedule, solver, message):
    with pytest.raises(ValueError, match=message):
        make(*of(schedule, solver))


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match=r"last must be one of \['dropped', 'kept', 'zero'\], got 'one'"):
        lists.sigmas(*of(DISCRETE, DPMPP), "one")


def in_diffusers(scheduler, x, time):
    """A scheduler's loop, with a network that gives the data."""
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(data(inputs, time(float(t))), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("schedule", "order", "last_sigma"),
    [(DISCRETE, 1, None), (SD, 2, None), (COSINE, 3, None), (DISCRETE, 3, 0.0)],
    ids=["linear", "scaled_linear", "one by one", "to 0"],
)
def test_dpm_solver_of_diffusers_makes_the_steps_of_its_list(schedule, order, last_sigma):
    diffusers = pytest.importorskip("diffusers")
    learned, table = of(schedule, Solver("dpmpp", 4, order, last_sigma=last_sigma), output="data")
    listed = lists.diffusers_timesteps(learned, table)
    scheduler = getattr(diffusers, listed.record["scheduler"])(**listed.record["arguments"])
    scheduler.set_timesteps(timesteps=listed.values)
    given = in_diffusers(scheduler, torch.from_numpy(Z), lambda t: (t + 1) / 1000)
    assert relative(given, run(lists.as_run(listed, learned, schedule))) < 1e-5
    assert 1e-5 < relative(given, run(learned.table(schedule))) < 1e-2  # the rounding


def test_diffusers_arguments_say_how_the_network_was_trained():
    with pytest.raises(ValueError, match=r"takes networks that predict .*, got 'score'; use LearnedScheduler"):
        lists.diffusers_timesteps(*of(SD, DPMPP, output="score"))
    with pytest.raises(ValueError, match=r"takes networks that predict \['flow'\], got 'reversed_flow'"):
        lists.diffusers_sigmas(*of(SCHEDULES["RectifiedFlow"], DDIM, output="reversed_flow"))
    learned, table = of(SD, DPMPP, output="v")
    arguments = lists.diffusers_timesteps(learned, table).record["arguments"]
    assert (arguments["prediction_type"], arguments["beta_schedule"]) == ("v_prediction", "scaled_linear")
    earlier = lists.diffusers_timesteps(learned, table._replace(betas=None, output=None))  # a file of before
    assert "beta_schedule" not in earlier.record["arguments"]
    assert "from_config(pipe.scheduler.config, **arguments)" in earlier.notes[-1]


@pytest.mark.parametrize(
    ("schedule", "solver"), [(SD, DDIM), (DISCRETE, replace(DDIM, last_sigma=0.0))], ids=["kept", "to 0"]
)
def test_euler_of_diffusers_makes_the_steps_of_its_list(schedule, solver):
    diffusers = pytest.importorskip("diffusers")
    learned, table = of(schedule, solver, output="data")
    listed = lists.diffusers_sigmas(learned, table)
    scheduler = getattr(diffusers, listed.record["scheduler"])(**listed.record["arguments"])
    scheduler.set_timesteps(sigmas=listed.values)
    start = torch.from_numpy(Z) / table.grid_alpha[0]
    given = in_diffusers(scheduler, start, lambda t: (t + 1) / 1000) * table.grid_alpha[-1]
    assert relative(given, run(lists.as_run(listed, learned, schedule))) < 1e-4


def test_euler_has_the_list_of_ddim_to_either_end_where_its_steps_are_the_same():
    for end in (None, 0.0):
        mine, theirs = (of(SCHEDULES["RectifiedFlow"], Solver(one, 4, last_sigma=end)) for one in ("euler", "ddim"))
        assert lists.diffusers_sigmas(*mine)[:4] == lists.diffusers_sigmas(*theirs)[:4]


def test_flow_euler_of_diffusers_makes_the_steps_of_its_list():
    diffusers = pytest.importorskip("diffusers")
    schedule = SCHEDULES["RectifiedFlow"]
    learned, table = of(schedule, DDIM)
    listed = lists.diffusers_sigmas(learned, table)
    scheduler = getattr(diffusers, listed.record["scheduler"])(**listed.record["arguments"])
    scheduler.set_timesteps(sigmas=listed.values)
    x = torch.from_numpy(Z)
    for t in scheduler.timesteps:
        time = float(t) / 1000
        x = scheduler.step((x - data(x, time)) / time, t, x, return_dict=False)[0]
    assert relative(x, run(lists.as_run(listed, learned, schedule))) < 1e-5
    to_zero = of(schedule, replace(DDIM, last_sigma=0.0))[0]  # the same times, and the end that the scheduler has
    assert relative(x, run(to_zero.table(schedule))) < 1e-5
