"""--path of evaluate: a GIF of the states on the way from the same noise to samples.

The learned schedule's states are beside a standard grid's, and both are held against the teacher's at the same noise
level.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax import paths, plots
from ld3_jax.disk import check_writable
from ld3_jax.learning import Discretization, Student
from ld3_jax.pretrained import Pretrained
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

_IMAGES, _POINTS, _CLOUD = 3, 30, 200  # how many are drawn
_ERROR_GAIN = 5


def check_path(path: Path) -> None:
    """Refuse another ending than .gif, and a file that cannot be written."""
    if path.suffix != ".gif":
        raise ValueError(f"--path must end in .gif, got {path.name!r}")
    check_writable(path)


def check_model(model: Pretrained) -> None:
    """Refuse states that are neither images nor points in the plane."""
    model.schedule.space.require_vectors("--path")
    if model.display is None and (len(model.shape) != 1 or model.shape[0] < 2):
        raise ValueError(f"--path draws images and points in the plane, not states of shape {model.shape}")


def draw(
    path: Path, model: Pretrained, student: Student, times: Mapping[str, Discretization], test: Pairs, teacher: Solver
) -> None:
    """Draw the states of the first held-out noises.

    Args:
        path: where to write a GIF.
        model: the model, which displays states.
        student: what to run.
        times: name -> times and coefficients, all with as many steps.
        test: held-out pairs.
        teacher: an accurate solver.
    """
    count = min(_CLOUD if model.display is None else _IMAGES, len(test.x_T))
    x_T, cond = jax.tree.map(lambda leaf: leaf[:count], (test.x_T, test.cond))
    found = {name: paths.follow(student, one, x_T, cond, teacher=teacher) for name, one in times.items()}
    title = f"{model}, {student.solver}: step {{}} of {student.solver.n_steps}"
    titles = [title.format(i) for i in range(student.solver.n_steps + 1)]
    if model.display is None:
        clouds = {name: np.asarray(one.teacher) for name, one in found.items()}
        clouds = {"teacher": next(iter(clouds.values()))} | clouds
        drawn = {name: np.asarray(one.student) for name, one in found.items()}
        drawn = {name: drawn.get(name, cloud)[:, :_POINTS] for name, cloud in clouds.items()}
        plots.point_paths(path, drawn, clouds, [f"{one}; gray: the teacher's states" for one in titles])
    else:
        plots.image_paths(path, [_rows(model, found, step) for step in range(len(titles))], titles)
    print(f"wrote {path}: states on the way from the first {min(count, _POINTS)} noises")


def _rows(model: Pretrained, found: Mapping[str, paths.Path], step: int) -> dict[str, np.ndarray]:
    """The images at a step: the teacher's at the first student's noise level, and each student's with their errors."""
    rows, display = {}, model.display
    assert display is not None  # `draw` has looked
    for name, one in found.items():
        alpha, sigma = (of(one.t[step]) for of in (model.schedule.alpha, model.schedule.sigma))
        teacher, own = (
            np.asarray(model.decode(states[step] / jnp.hypot(alpha, sigma))) for states in (one.teacher, one.student)
        )
        shown, level = display(own, teacher), f"at sigma / alpha = {float(sigma / alpha):.3g}"
        if not rows:
            rows[f"teacher\n{level}"] = display(teacher, teacher)
        rows[f"{name}\n{level}"] = shown
        error = _ERROR_GAIN * np.abs(shown - display(teacher, teacher))
        rows[f"{name}: {_ERROR_GAIN} x the distance\nfrom the teacher there"] = error
    return rows
