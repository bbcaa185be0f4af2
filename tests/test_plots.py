"""Plots: each function writes a picture that shows something."""

import itertools

import numpy as np
import pytest
from PIL import Image

from ld3_jax import plots

RNG = np.random.default_rng(0)
LAM = np.linspace(-5.0, 5.0, 6)
IMAGES = RNG.random((5, 8, 8, 3))
POINTS = RNG.normal(size=(40, 2))
LINES = [{"step": i, "loss": 1 / i, "valid_loss": 2 / i} for i in range(1, 9)]

CALLS = {
    "grids": (plots.grids, {"learned": LAM, "for the network": LAM + 0.1}, {"logsnr": LAM, "edm": LAM**3}, "title"),
    "losses": (plots.losses, LINES, ("start", 1.5), "title"),
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


def test_a_validation_is_where_its_loss_changes():
    steps = [{"step": step, "valid_loss": loss} for step, loss in enumerate([0.18] * 5 + [0.09] * 3 + [0.08], 1)]
    assert [line["step"] for line in plots._validations(steps, 0.18)] == [6, 9]


def test_a_picture_that_is_not_written_is_returned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function, *arguments in CALLS.values():
        assert function(None, *arguments).size == function(tmp_path / "picture.png", *arguments).size
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def test_paths_are_animated_a_frame_for_each_step(tmp_path):
    frames = [{"teacher": IMAGES, "learned\nat 3": step * IMAGES} for step in (0.0, 0.5, 1.0)]
    plots.image_paths(tmp_path / "images.gif", frames, list("abc"))
    states = RNG.normal(size=(3, 6, 2))
    plots.point_paths(tmp_path / "points.gif", {"learned": states}, {"learned": 2 * states}, list("abc"))
    for name in ("images.gif", "points.gif"):
        with Image.open(tmp_path / name) as picture:
            assert (picture.n_frames, picture.info["loop"]) == (3, 0)
            shown = [np.asarray(_frame(picture, i), float) for i in range(3)]
        assert all(np.abs(a - b).max() > 100 for a, b in itertools.pairwise(shown))


def test_images_of_any_size_fit_into_an_animation(tmp_path):
    for shape in ((2, 6, 4, 3), (2, 300, 200, 1)):
        plots.image_paths(tmp_path / "path.gif", [{"teacher": RNG.random(shape)}], ["title"])
        with Image.open(tmp_path / "path.gif") as picture:
            assert picture.size == (150 + 2 * (64 + 4), 24 + 96 + 4)


def _frame(picture, i):
    picture.seek(i)
    return picture.convert("RGB")
