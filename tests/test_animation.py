"""The states on the way as an animation: images; test_experiments has points in the plane."""

from dataclasses import replace

import jax
import pytest
from PIL import Image

from experiments import animation
from ld3_jax import learning, poses, pretrained, schedules
from ld3_jax.pretrained import images
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs


def test_paths_of_images_are_animated_and_other_states_refused(tmp_path):
    schedule, solver = schedules.VPLinear(), Solver("ddim", 2)
    white = pretrained.Pretrained(
        "white",
        pretrained.Settings(),
        lambda x, t, cond: schedule.sigma(t) * x,
        schedule,
        (8, 8, 1),
        display=images.rgb,
    )
    student = learning.make_student(white.model, schedule, solver)
    x_T = white.draw_noise(jax.random.key(0), 5)
    times = {name: learning.on_grid(name, schedule, solver) for name in ("logsnr", "edm")}
    animation.draw(tmp_path / "path.gif", white, student, times, Pairs(x_T, x_T), Solver("unipc", 6))
    with Image.open(tmp_path / "path.gif") as picture:
        assert picture.n_frames == 3
    with pytest.raises(ValueError, match=r"--path draws images and points in the plane, not states of shape \(1,\)"):
        animation.check_model(replace(white, shape=(1,), display=None))
    with pytest.raises(ValueError, match="--path is for states that are vectors"):
        animation.check_model(replace(white, schedule=poses.PoseNoise()))
