"""The scripts of docs/examples run, and show what they say they show."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

import ld3_jax
from ld3_jax import losses
from ld3_jax.solvers import SOLVERS

EXAMPLES = sorted(Path("docs/examples").glob("*.py"))


def example(name):
    return importlib.import_module(f"docs.examples.{name}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 40
    assert f"python -m docs.examples.{path.stem}\n" in path.read_text()
    assert any(f"{path.stem}.py" in page.read_text() for page in Path("docs").rglob("*.md"))


def test_a_network_of_ones_own_samples_best_with_learned_times(capsys):
    errors = example("own_network").main()
    assert errors.pop("learned") < 0.5 * min(errors.values())
    assert "learned" in capsys.readouterr().out.splitlines()[1]


def test_a_pytorch_module_samples_best_with_learned_times():
    errors = example("own_pytorch").main()
    assert errors["learned"] < 0.1 * errors["logsnr"]


def test_a_galaxy_network_learns_and_saves(tmp_path):
    path = tmp_path / "new" / "schedule.json"
    errors = example("learn_schedule").main(path, count=4, steps=4, batch_size=2)
    assert errors.pop("learned") < min(errors.values())
    assert ld3_jax.load(path).t.shape == (6,)


def test_a_new_solver_is_better_than_ddim_and_its_times_are_learned(monkeypatch):
    monkeypatch.setitem(SOLVERS, "halfway", None)  # so that it is gone after the test
    errors = example("add_solver").main()
    assert errors["halfway, learned times"] < 0.5 * errors["halfway"] < 0.5 * errors["ddim"]
    # On a grid that is even in lam it is DPM-Solver++ 2M.
    schedule = ld3_jax.schedules.VPLinear()
    t = ld3_jax.grid("logsnr", schedule, 6)
    own = ld3_jax.make_table(schedule, t, solver="halfway")
    other = ld3_jax.make_table(schedule, t, solver=ld3_jax.Solver("dpmpp", order=2, lower_order_final=False))
    np.testing.assert_allclose(own.predict_history, other.predict_history, rtol=1e-3, atol=1e-5)


def test_a_new_parametrisation_learns_one_number():
    learned = example("add_parametrisation").main()
    losses = learned.losses["valid"]
    assert losses["learned"] < 0.97 * losses["start"]
    ring = ld3_jax.pretrained.load("ring")
    student = ld3_jax.make_student(ring.model, ring.schedule, learned.solver)
    held_out = ld3_jax.make_pairs(ring.model, ring.schedule, *ring.draw(jax.random.key(5), 200))
    start = ld3_jax.learning.on_grid("logsnr", ring.schedule, learned.solver)
    assert learned.distances(student, held_out).mean() < ld3_jax.learning.distances(student, start, held_out).mean()


def test_a_new_noise_schedule_learns_too():
    before, after = example("add_noise_schedule").main()
    assert after < 0.7 * before


def test_a_model_of_ones_own_is_loaded_by_its_name(tmp_path):
    samples = example("add_pretrained").main(str(tmp_path / "points.npy"))
    points = np.array([[0, 0], [1, 2], [3, -1]])
    assert np.abs(samples[:, None] - points[None]).max(-1).min(-1).max() < 0.4
    with pytest.raises(ValueError, match="'points' has no guidance"):
        ld3_jax.pretrained.load("points", guidance=2.0)


def test_a_new_loss_is_learned_by_gauss_newton(monkeypatch):
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    medians = example("add_loss").main()
    assert 0 < medians["cauchy"] < 1e-4


def test_a_new_learner_gets_below_the_start():
    found = example("add_learner").main().losses["valid"]
    assert found["learned"] < 0.5 * found["start"]


def test_a_new_domain_on_a_manifold_learns_too():
    before, after = example("add_domain").main()
    assert after < 0.5 * before


def test_image_to_image_is_learned_from_data_of_one_s_own():
    errors = example("image_to_image").main()
    assert errors.pop("learned") < 0.5 * min(errors.values())
