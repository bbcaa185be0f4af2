"""States on the way: they end in the samples, and the teacher's states are an accurate solver's at the same times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ld3_jax import learning, paths, pretrained, solvers
from ld3_jax.poses import PoseNoise
from ld3_jax.schedules import VPLinear
from ld3_jax.solvers import Solver

RING = pretrained.load("ring")
X_T = RING.draw(jax.random.key(0), 6)[0]


def student(*choices, **more):
    return learning.make_student(RING.model, RING.schedule, Solver(*choices, **more))


@pytest.mark.parametrize("solver", [Solver("unipc", 4), Solver("heun", 5), Solver("ddim", 4, last_sigma=0.0)], ids=str)
def test_a_path_goes_from_the_noise_through_a_state_for_each_time_to_the_sample(solver):
    runner = learning.make_student(RING.model, RING.schedule, solver)
    times = learning.on_grid("edm", RING.schedule, solver)
    path = paths.follow(runner, times, X_T, teacher=Solver("unipc", 20))
    assert path.student.shape == path.teacher.shape == (solver.n_steps + 1, *X_T.shape)
    for states in (path.student, path.teacher):
        np.testing.assert_array_equal(states[0], X_T)
    np.testing.assert_allclose(path.student[-1], learning.student.run(runner, times, X_T), rtol=1e-5, atol=1e-6)
    assert float(path.t[-1]) == pytest.approx(RING.schedule.t_min)


def test_the_teacher_s_states_are_at_the_student_s_times():
    one = student("dpmpp", 5)
    times = learning.on_grid("quadratic", RING.schedule, one.solver)
    path = paths.follow(one, times, X_T)
    for i in (1, 3, 5):  # an accurate solver that ends at this time
        u = jnp.linspace(*RING.schedule.lam(times.t[jnp.array([0, i])]), 101)
        t = RING.schedule.inverse_lam(u).at[0].set(RING.schedule.t_max)
        known = solvers.sample(RING.model, RING.schedule, X_T, t, solver="unipc")
        np.testing.assert_allclose(path.teacher[i], known, atol=2e-3)
    assert np.abs(path.student[2] - path.teacher[2]).max() > 1e-2  # five calls are no teacher


def test_states_on_a_manifold_are_refused():
    schedule = PoseNoise()
    one = learning.make_student(lambda x, t, cond: x, schedule, Solver("ddim", 3))
    times = learning.on_grid("logsnr", VPLinear(), one.solver)
    with pytest.raises(ValueError, match="the path of the states is for states that are vectors"):
        paths.follow(one, times, X_T)
