"""Plots: each function writes a picture that shows something."""

import numpy as np
import pytest
from PIL import Image

from ld3_jax import plots

RNG = np.random.default_rng(0)
LAM = np.linspace(-5.0, 5.0, 6)
IMAGES = RNG.random((5, 8, 8, 3))
POINTS = RNG.normal(size=(40, 2))
LINES = [{"start": "edm", "step": i, "loss": 1 / i, "valid_loss": 2 / i} for i in range(1, 9)]
RACE = [*LINES, *({**line, "start": "logsnr"} for line in LINES[:3])]

CALLS = {
    "grids": (plots.grids, {"learned": LAM, "for the network": LAM + 0.1}, {"logsnr": LAM, "edm": LAM**3}, "title"),
    "losses": (plots.losses, LINES, ("start", 1.5), "title"),
    "losses of a race": (plots.losses, RACE, ("start", 1.5), "title"),
    "rows": (plots.image_rows, {"teacher": IMAGES, "learned": IMAGES[::-1]}, "title", {"learned": list("abcde")}),
    "one image a row": (plots.image_rows, {"teacher": IMAGES[:1], "learned": IMAGES[1:2]}, "title", {}),
    "one row": (plots.image_rows, {"teacher": IMAGES}, "title", {}),
    "gray row": (plots.image_rows, {"teacher": IMAGES[..., :1]}, "title", {}),
    "grid": (plots.image_grid, IMAGES),
    "gray grid": (plots.image_grid, IMAGES[..., :1]),
    "one image": (plots.image_grid, IMAGES[:1]),
    "scatter of one number": (plots.scatter_rows, {"teacher": POINTS[:, :1], "learned": 2 * POINTS[:, :1]}, "title"),
    "scatter": (plots.scatter_rows, {"teacher": POINTS, "learned": POINTS + 0.1}, "title"),
}


@pytest.mark.parametrize("name", CALLS)
def test_picture_is_readable_and_not_blank(name, tmp_path):
    function, *arguments = CALLS[name]
    path = tmp_path / "deep" / "picture.png"
    function(path, *arguments)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]
    assert 100 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 2000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert 0.02 < (pixels < 250).any(-1).mean() < 0.98


def test_images_keep_their_colors(tmp_path):
    red = np.tile([1.0, 0.0, 0.0], (4, 4, 4, 1))
    plots.image_grid(tmp_path / "red.png", red)
    with Image.open(tmp_path / "red.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == [255, 0, 0]).all(-1).mean() > 0.5


def test_a_start_that_was_judged_on_some_pairs_in_a_race_is_no_validation():
    of = [0.15] * 3 + [0.18] * 2 + [0.09] * 3 + [0.08]  # in the race, after it, and two validations
    own = [{"step": step, "valid_loss": loss} for step, loss in enumerate(of, 1)]
    assert [line["step"] for line in plots._validations(own, 0.18)] == [6, 9]
    assert [line["step"] for line in plots._validations(own[5:], 0.18)] == [6, 9]
