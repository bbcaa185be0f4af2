"""Add a pre-trained model: a function under a name, here the ideal denoiser of the points in a file.

python -m docs.examples.add_pretrained

A configuration that imports this module may name it: --config.network.name=points --config.network.file=points.npy
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import ld3_jax
from ld3_jax import pretrained


def denoiser(points, x, t, cond):
    """x_0 from x = (1 - t) x_0 + t eps: the mean of the points, each weighted by how likely it is."""
    squares = ((x[:, None] - (1 - t) * points[None]) ** 2).sum(-1)
    return jax.nn.softmax(-squares / (2 * t**2)) @ points


@pretrained.register("points", settings=("file",))
def load(name, settings, on_progress):
    points, schedule = jnp.asarray(np.load(settings.file)), ld3_jax.schedules.RectifiedFlow(t_min=0.05)
    model = ld3_jax.to_noise(Partial(denoiser, points), schedule, "data")
    return pretrained.Pretrained(name, settings, model, schedule, shape=points.shape[1:])


def main(file: str = "points.npy") -> np.ndarray:
    """Write a file of three points, load the model by its name, and draw samples."""
    np.save(file, np.float32([[0, 0], [1, 2], [3, -1]]))
    model = pretrained.load("points", file=file)
    samples = ld3_jax.make_pairs(model.model, model.schedule, *model.draw(jax.random.key(0), 10)).x_0
    print(samples.round(1))
    return np.asarray(samples)


if __name__ == "__main__":
    main()
