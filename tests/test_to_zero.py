"""Solvers whose last step ends without noise, in the data prediction of its call: run, learned, saved, exported."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import samplers_of_k_diffusion
from jax.tree_util import Partial
from learned_anything import moved
from noise_schedules import SCHEDULES

from configs import gaussian as gaussian_config
from experiments.run import Run
from ld3_jax import grids, interop, learning, poses, solvers
from ld3_jax.learning import Gaps, WithCoefficients, load, on_grid
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = SCHEDULES["VPLinear"]
RING = gaussian.noise_model(gaussian.ring(), SCHEDULE)
X = np.random.default_rng(0).normal(size=(6, 2))


@Partial
def network(x, t, cond=None):
    return jnp.tanh(x * (1.5 - t / (1 + t))) + 0.3 * jnp.cos(3 * x + 5 * t / (1 + t))


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("dpmpp", 3), ("unipc", 2), ("ipndm", 4), ("heun", 2), ("dpm2", 2)]
)
def test_the_sample_is_the_data_prediction_where_a_plain_loop_ends_one_step_earlier(name, order, float64):
    plain, t = reference.SCHEDULES["VPLinear"], grids.grid("logsnr", SCHEDULE, 5)
    solver = Solver(name, None, order, lower_order_final=False, last_sigma=0.0)
    given = jax.jit(partial(solvers.sample, solver=solver))(network, SCHEDULE, jnp.asarray(X), t)
    reached = reference.solve(name, network, plain, X, t[:-1], t[:-1], order, lower_order_final=False)
    at = np.asarray(t[-2])
    expected = (reached - plain.sigma(at) * network(reached, at)) / plain.alpha(at)
    np.testing.assert_allclose(given, expected, rtol=1e-8, atol=1e-9)
    assert solver.for_steps(5).nfe == (9 if name in ("heun", "dpm2") else 5)


@pytest.mark.parametrize("name", ["dpmpp", "heun"])
def test_gradients_are_finite_and_those_of_finite_differences(name, float64):
    solver = Solver(name, 5, last_sigma=0.0)
    t = on_grid("logsnr", SCHEDULE, solver).t

    @jax.jit
    def size(moves):
        t_moved = t.at[1:-1].add(moves[0])
        found = learning.Discretization(t_moved, t_moved.at[1:-1].add(moves[1]))
        table = found.table(SCHEDULE, solver)
        return (solvers.integrate(network, SCHEDULE, solver, table, jnp.asarray(X)) ** 2).sum()

    at, along = jnp.zeros((2, len(t) - 2)), 1e-3 * jnp.asarray([np.arange(1.0, len(t) - 1), np.ones(len(t) - 2)])
    gradient = jax.grad(size)(at)
    assert np.isfinite(gradient).all()
    differences = (size(1e-4 * along) - size(-1e-4 * along)) / 2e-4
    np.testing.assert_allclose((gradient * along).sum(), differences, rtol=1e-5)


def test_the_end_of_the_grid_has_no_part_in_it():
    solver = Solver("dpmpp", 4, last_sigma=0.0)
    t = grids.grid("logsnr", SCHEDULE, 4)
    chex.assert_trees_all_close(
        *(solvers.make_table(SCHEDULE, end, solver=solver) for end in (t, t.at[-1].multiply(1.5)))
    )
    assert str(solver) == "dpmpp of order 3, 4 calls, to sigma 0"


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("VPDiscrete", Solver("dpmpp", lower_order_final=False)),
        ("VELinear", Solver("unipc")),
        ("RectifiedFlow", Solver("ipndm")),
    ],
)
def test_a_list_ends_at_0_in_the_data_prediction_of_the_time_before(name, solver):
    schedule, solver = SCHEDULES[name], replace(solver, last_sigma=0.0)
    t = jnp.append(grids.grid("edm", schedule, 4), 0.0)  # as EDM's and k-diffusion's: t_min, and then 0
    shorter = jnp.append(t[:-1], t[-2])
    table = solvers.make_table(schedule, t, solver=solver)
    chex.assert_tree_all_finite(table)
    chex.assert_trees_all_equal(table, solvers.make_table(schedule, shorter, solver=solver))
    chex.assert_trees_all_close(table, jax.jit(partial(solvers.make_table, solver=solver))(schedule, t), rtol=1e-5)
    slope = jax.jacrev(lambda t: solvers.make_table(schedule, t, solver=solver).predict_history)(t)
    assert np.isfinite(slope).all()


def test_a_manifold_has_no_data_prediction():
    with pytest.raises(ValueError, match="last_sigma must be None where states lie on a manifold, got 0"):
        solvers.make_table(poses.PoseNoise(), jnp.linspace(1.0, 0.0, 5), solver=Solver("dpmpp", 4, last_sigma=0.0))
    config = gaussian_config.get_config()
    config.solver.last_sigma = 0.0
    run = Run.of(config)
    assert run.solver.to_zero
    with pytest.raises(ValueError, match="solver: last_sigma must be None"):
        run.sharing(model=SimpleNamespace(schedule=poses.PoseNoise())).check()


def test_other_solvers_with_the_same_end_are_starts():
    solver = Solver("dpmpp", 4, last_sigma=0.0)
    starts = WithCoefficients().starts("edm", SCHEDULE, solver)
    t = grids.grid("edm", SCHEDULE, 4)
    for name, order in [("unipc", 3), ("ipndm", 2)]:
        start = starts[f"edm as {name} {order}"]
        chex.assert_tree_all_finite(start)
        other = Solver(name, 4, order, last_sigma=0.0)
        expected = solvers.sample(RING, SCHEDULE, jnp.asarray(X, jnp.float32), t, solver=other)
        table = start.table(SCHEDULE, solver)
        given = solvers.integrate(RING, SCHEDULE, solver, table, jnp.asarray(X, jnp.float32))
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def pairs():
    x_T, t = jax.random.normal(jax.random.key(0), (40, 2)), grids.grid("logsnr", SCHEDULE, 40)
    return Pairs(x_T, jax.jit(partial(solvers.sample, solver=Solver("dpmpp", 40, 2)))(RING, SCHEDULE, x_T, t))


@pytest.mark.parametrize("parametrisation", [Gaps(), WithCoefficients()], ids=["gaps", "coefficients"])
def test_it_is_learned(parametrisation, pairs):
    student = learning.make_student(RING, SCHEDULE, Solver("dpmpp", 4, 2, last_sigma=0.0))
    learner = learning.GaussNewton(steps=6, batch_size=20, validate_every=3)
    learned = learning.fit(
        student, pairs, jax.random.key(1), parametrisation=parametrisation, learner=learner, start="logsnr"
    )
    assert learned.losses["valid"]["learned"] < 0.8 * learned.losses["valid"]["start"]
    chex.assert_tree_all_finite(learned.discretization)
    assert learned.solver.to_zero


@pytest.mark.parametrize("how", [{"coefficients": 0}, {}], ids=["times", "coefficients"])
def test_it_comes_back_from_its_file_and_its_levels_end_at_0(tmp_path, how):
    learned = moved(SCHEDULE, Solver("dpmpp", 4, last_sigma=0.0), **how)
    learned.save(tmp_path / "schedule.json", SCHEDULE)
    again = load(tmp_path / "schedule.json")
    assert again.solver == learned.solver
    chex.assert_trees_all_equal(again.discretization, learned.discretization)
    table = interop.read(tmp_path / "schedule.json")
    assert table.levels[-1] == 0
    assert table.process == "vp"
    np.testing.assert_allclose(table.levels[:-1], np.exp(-learned.lam[:-1]), rtol=1e-5)


def k_diffusion_s(schedule):
    """The network as k-diffusion has it: data from x in units where alpha = 1."""
    import torch

    def model(x, sigma):
        t = schedule.inverse_lam(-jnp.log(jnp.asarray(float(sigma[0]))))
        state = jnp.asarray(x.numpy()) * schedule.alpha(t)
        data = (state - schedule.sigma(t) * network(state, t)) / schedule.alpha(t)
        return torch.from_numpy(np.array(data))

    return model


@pytest.mark.parametrize(
    ("sampler", "solver"),
    [
        ("sample_euler", Solver("ddim", 5, last_sigma=0.0)),
        ("sample_dpmpp_2m", Solver("dpmpp", 5, 2, last_sigma=0.0)),
        ("sample_heun", Solver("heun", 5, last_sigma=0.0)),
        ("sample_dpm_2", Solver("dpm2", 5, last_sigma=0.0)),
    ],
    ids=str,
)
def test_samplers_of_k_diffusion_run_what_was_learned(sampler, solver, float64):
    sampling = samplers_of_k_diffusion.sampling()
    import torch

    schedule = SCHEDULES["VPLinear"]
    learned = moved(schedule, solver, network_times=0, coefficients=0)
    sigmas = torch.tensor([*np.exp(-learned.lam[:-1].astype(float)), 0.0])
    x_T = torch.tensor(X)
    given = getattr(sampling, sampler)(
        k_diffusion_s(schedule), x_T / float(schedule.alpha(learned.t[0])), sigmas, disable=True
    )
    expected = np.asarray(learned.sample(network, schedule, jnp.asarray(X)))
    error = np.sqrt(np.mean((given.numpy() - expected) ** 2) / np.mean(expected**2))
    assert error < 1e-5
