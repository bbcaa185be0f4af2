"""The learned schedule: it samples, is judged, saves itself, and is read back from JSON bit for bit or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import ld3_jax
from ld3_jax import denoisers, grids, schedules, solvers
from ld3_jax.learning import (
    Coefficients,
    Discretization,
    Gaps,
    GradientDescent,
    Learned,
    WithCoefficients,
    load,
    load_several,
)
from ld3_jax.networks import gaussian
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher, draw_noise, make_pairs

GOLDEN = Path(__file__).parent / "golden"
SCHEDULE = schedules.VPLinear()
MODEL = gaussian.noise_model(gaussian.ring(), SCHEDULE)
T = grids.grid("logsnr", SCHEDULE, 4)


def same(one, other):
    """Whether two are equal, bit for bit."""
    assert (one.solver, one.model, one.losses) == (other.solver, other.model, other.losses)
    chex.assert_trees_all_equal((one.discretization, one.lam), (other.discretization, other.lam), strict=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "schedule.json"


@pytest.fixture
def learned():
    """Times whose numbers have no short decimal form."""
    solver = Solver("unipc", 4, order=2, variant="bh2", lower_order_final=False)
    losses = {"loss": "l2", "unseen": {"learned": {"mean": 0.1 + 0.2}}}
    model = {"name": "ring", "digest": "0123456789abcdef"}
    return Learned(solver, Discretization(T, T.at[1:-1].multiply(0.97)), np.asarray(SCHEDULE.lam(T)), model, losses)


@pytest.fixture
def with_coefficients(learned):
    keys = jax.random.split(jax.random.key(0), 3)
    change = Coefficients(*map(jax.random.normal, keys, [(4,), (4, 4), (4, 4)]))
    return replace(learned, discretization=learned.discretization._replace(coefficients=change))


@pytest.mark.parametrize("kind", ["learned", "with_coefficients"])
def test_all_of_it_reads_back_bit_for_bit(kind, request, path):
    one = request.getfixturevalue(kind)
    one.save(path)
    same(load(path), one)
    assert json.loads(path.read_text())["version"] == 6
    assert not np.array_equal(one.t, one.t_c)


def test_it_reads_back_bit_for_bit_in_double_precision(path, float64):
    t = grids.grid("logsnr", SCHEDULE, 2)
    change = Coefficients(jnp.full(2, 1 / 3), jnp.full((2, 2), 1 / 7))
    one = Learned(Solver("ddim", 2), Discretization(t, t, change), np.asarray(SCHEDULE.lam(t)))
    one.save(path)
    same(load(path), one)
    assert one.t.dtype == jnp.float64


def test_it_is_plain_json(learned, path):
    learned.save(path)
    record = json.loads(path.read_text())
    expected = {"solver": "unipc", "nfe": 4, "n_steps": 4, "order": 2, "variant": "bh2", "lower_order_final": False}
    assert expected.items() <= record.items()
    assert {"t", "t_c", "lam", "model", "losses"} <= record.keys()


def _network(variance, x, t, cond):
    """Exact for Gaussian data."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return sigma * x / (alpha**2 * variance + sigma**2)


SMALL = Partial(_network, jnp.float32(0.04))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(SMALL, SCHEDULE, draw_noise(jax.random.key(0), 12, (2,)), teacher=Teacher(Solver("ddim", 20)))


@pytest.mark.parametrize("parametrisation", [Gaps(), WithCoefficients()], ids=lambda p: type(p).__name__)
def test_what_fit_returns_needs_nothing_else(parametrisation, pairs, path):
    student = ld3_jax.make_student(SMALL, SCHEDULE, Solver("ddim", 3), ld3_jax.losses.l2)
    learner = GradientDescent(steps=10, batch_size=12, validate_every=1)
    one = ld3_jax.fit(student, pairs, jax.random.key(1), parametrisation=parametrisation, learner=learner, start="edm")
    assert one.losses["valid"]["learned"] < one.losses["valid"]["start"]
    one.save(path)
    again = ld3_jax.load(path)
    same(again, one)
    assert (again.coefficients is None) == (type(parametrisation) is not WithCoefficients)
    samples = jax.jit(again.sample)(SMALL, SCHEDULE, pairs.x_T)
    predict = denoisers.convert(SMALL, SCHEDULE, "data")
    chex.assert_trees_all_close(solvers.solve(predict, again.table(SCHEDULE), pairs.x_T), samples, rtol=1e-5)
    each = again.distances(student, pairs, batch_size=5)
    np.testing.assert_allclose(each, ((samples - pairs.x_0) ** 2).mean(-1), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(each.mean(), one.losses["valid"]["learned"], rtol=1e-4)


def test_sampling_outside_jit_compiles_once(with_coefficients, caplog):
    def run():
        x_T = jnp.ones((3, 2))
        ld3_jax.sample(MODEL, SCHEDULE, x_T, T, solver=with_coefficients.solver)
        return with_coefficients.sample(MODEL, SCHEDULE, x_T)

    first = run()
    with jax.log_compiles():
        np.testing.assert_array_equal(run(), first)
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 2)(0)
    assert "Compiling" in caplog.text


def test_it_is_judged_with_its_own_solver(learned, pairs):
    student = ld3_jax.make_student(SMALL, SCHEDULE, learned.solver)
    own, other = (
        learned.distances(student._replace(solver=solver), pairs) for solver in (learned.solver, Solver("ddim", 3))
    )
    chex.assert_trees_all_equal(own, other)


@pytest.mark.parametrize("name", ["v1_heun", "v2_coefficients", "v2_corrector", "v2_curve"])
def test_files_of_earlier_versions_sample_as_they_did(name, path, float64):
    model = gaussian.noise_model(gaussian.ring(), SCHEDULE)
    one = load(GOLDEN / f"schedule_{name}.json")
    with np.load(GOLDEN / "schedules.npz") as golden:
        samples = jax.jit(one.sample)(model, SCHEDULE, jnp.asarray(golden["x_T"]))
        np.testing.assert_allclose(samples, golden[f"schedule_{name}"], atol=1e-8)
    one.save(path)
    same(load(path), one)


@pytest.mark.parametrize("nfe", [3, 5, 6, 7])
def test_the_curve_of_a_file_of_version_5_samples_as_it_did(nfe, float64):
    path = GOLDEN / "schedule_v5_curve.json"
    one = load(path)
    if nfe != one.solver.nfe:
        one = ld3_jax.interpolate(load_several(path, SCHEDULE), nfe, SCHEDULE)
    with np.load(GOLDEN / "schedules.npz") as golden:
        samples = jax.jit(one.sample)(MODEL, SCHEDULE, jnp.asarray(golden["x_T"]))
        np.testing.assert_allclose(samples, golden[f"schedule_v5_curve_{nfe}"], atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": [1.0, 0.5, 0.3, 0.2, 0.05]}, "t must run from 1 to 0.001, .* got 1 to 0.05"),
        ({"t": [7.0, 0.5, 0.3, 0.2, 0.001]}, "t must run from 1 to 0.001, .* got 7 to 0.001"),
        ({"t_c": [3.0, 0.5, 0.3, 0.2, 0.001]}, "t_c must lie from 1 to 0.001, .* got 3 to 0.001"),
        ({"t_c": [1.0, 0.5, 0.3, 0.2, -0.2]}, "t_c must .* got 1 to -0.2"),
    ],
)
def test_times_beyond_the_models_range_are_refused(change, message, learned, pairs, path):
    learned.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    one = load(path)
    student = ld3_jax.make_student(MODEL, SCHEDULE, learned.solver)
    uses = [
        lambda: one.table(SCHEDULE),
        lambda: one.sample(MODEL, SCHEDULE, pairs.x_T),
        lambda: jax.jit(one.sample)(MODEL, SCHEDULE, pairs.x_T),
        lambda: one.distances(student, pairs),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use()


def test_coefficients_for_states_of_another_space_are_refused(with_coefficients, pairs):
    of_a_manifold = with_coefficients.discretization.coefficients._replace(base=())
    one = replace(
        with_coefficients, discretization=with_coefficients.discretization._replace(coefficients=of_a_manifold)
    )
    with pytest.raises(ValueError, match="its coefficients were learned for states of another space"):
        one.sample(MODEL, SCHEDULE, pairs.x_T)


def test_another_noise_schedule_is_refused(learned, pairs):
    with pytest.raises(ValueError, match=r"run from 80 to 0\.002, .* got 1 to 0\.001"):
        learned.sample(MODEL, schedules.VELinear(), pairs.x_T)
    with pytest.raises(ValueError, match=r"its half-log-SNR runs from .* it was learned for another noise schedule"):
        learned.sample(MODEL, schedules.VPLinear(beta_1=5.0), pairs.x_T)
