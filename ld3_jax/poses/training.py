"""Training of `poses.network` by denoising score matching, and its error against the exact score.

The loss of denoising score matching differs by a constant from the squared distance to the mean of the kernels' scores,
given the noisy pose. Here the data set is small, so this mean is known exactly, and the target has no variance.

Reference: Vincent, Neural Computation 23 (2011); Xu et al., arXiv:2302.00670 (targets that are means over the data).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ld3_jax.networks import weights
from ld3_jax.poses import Pose, PoseNoise, add_noise, noise_model
from ld3_jax.poses import network as networks
from ld3_jax.poses.network import Context, PoseNet
from ld3_jax.ranges import COUNT, POSITIVE, check

_JITTER = 0.2  # of a part's time around the pose's: learned schedules give parts their own times
_LEAST = 0.1  # least unit by which errors are divided: for pure noise there is nothing to learn
_AT_A_TIME = 25  # steps between reports


@dataclass(frozen=True)
class Recipe:
    """Adam with a rate that rises, then falls by a cosine to 0; the result is a moving average of the parameters.

    Attributes:
        steps: of Adam.
        batch_size: noisy poses of each.
        rate: its largest.
        average: share of the moving average that a step keeps.

    Raises:
        ValueError: if a number is out of its range.
    """

    steps: int = 2500
    batch_size: int = 16
    rate: float = 3e-3
    average: float = 0.998

    def __post_init__(self) -> None:
        check(vars(self), {"steps": COUNT, "batch_size": COUNT, "rate": POSITIVE, "average": POSITIVE})


class _State(NamedTuple):
    params: PyTree
    average: PyTree
    adam: PyTree


def train(
    key: PRNGKeyArray,
    data: Pose,
    context: Context,
    noise: PoseNoise,
    recipe: Recipe = Recipe(),
    network: PoseNet | None = None,
) -> Iterator[tuple[int, float, PyTree]]:
    """Train a network on poses.

    Args:
        key: of the noise, and of the first parameters.
        data: (k, ...) poses.
        context: ligand and pocket.
        noise: of the poses.
        recipe: how.
        network: its size; None: the default.

    Yields:
        Every 25 steps, and at the end: steps done, mean loss since the last report, moving average of the parameters.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.rate, min(200, recipe.steps // 10), recipe.steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    seed_key, key = jax.random.split(key)
    seed = int(jax.random.randint(seed_key, (), 0, 2**31 - 1))
    params = jax.tree.map(jnp.asarray, weights.random(networks.shapes(context, network), seed))
    state = _State(params, params, rule.init(params))

    @jax.jit
    def step(state: _State, i: Array, data: Pose, context: Context) -> tuple[_State, Array]:
        of_step = jax.random.fold_in(key, i)
        value, slope = jax.value_and_grad(loss)(state.params, of_step, data, context, noise, recipe.batch_size)
        change, adam = rule.update(slope, state.adam)
        params = optax.apply_updates(state.params, change)
        kept = jnp.minimum(recipe.average, (1 + i) / (10 + i))  # the first parameters are soon forgotten
        return _State(params, optax.incremental_update(params, state.average, 1 - kept), adam), value

    values = []
    for i in range(recipe.steps):
        state, value = step(state, jnp.asarray(i), data, context)
        values.append(value)
        if len(values) == _AT_A_TIME or i + 1 == recipe.steps:
            yield i + 1, float(jnp.stack(values).mean()), state.average
            values = []


def loss(
    params: PyTree, key: PRNGKeyArray, data: Pose, context: Context, noise: PoseNoise, count: int
) -> Float[Array, ""]:
    """Mean squared error of each part's eps, in its units, over noisy poses at random times."""
    time_key, jitter_key, noise_key = jax.random.split(key, 3)
    t = jax.random.uniform(time_key, (count, 1)) + _JITTER * jax.random.normal(jitter_key, (count, 3))
    t = Pose(*jnp.abs(1 - jnp.abs(1 - t)).clip(0, 1).T)  # reflected at both ends
    x, exact = noisy(noise_key, data, noise, t)
    units = jax.vmap(networks.units)(noise.sigmas(t))

    def of_part(found: Array, exact: Array, unit: Array) -> Array:
        return jnp.mean((found - exact) ** 2 / jnp.maximum(unit, _LEAST)[:, None] ** 2)

    return sum(map(of_part, networks.predict(params, context, noise, x, t), exact, units), jnp.zeros(()))


def noisy(key: PRNGKeyArray, data: Pose, noise: PoseNoise, t: Pose) -> tuple[Pose, Pose]:
    """Poses of the data with noise, each of its own times (n,), and the exact eps in them."""
    exact = noise_model(data, noise)

    def one(key: PRNGKeyArray, t: Pose) -> tuple[Pose, Pose]:
        which_key, noise_key = jax.random.split(key)
        which = jax.random.randint(which_key, (1,), 0, len(data.translation))
        x = add_noise(noise_key, jax.tree.map(lambda leaf: leaf[which], data), noise.sigmas(t))
        return jax.tree.map(lambda leaf: leaf[0], (x, exact(x, t)))

    return jax.vmap(one)(jax.random.split(key, len(t.translation)), t)


@partial(jax.jit, static_argnames=("noise", "count"))
def accuracy(
    params: PyTree, key: PRNGKeyArray, data: Pose, context: Context, noise: PoseNoise, t: Float[Array, ""], count: int
) -> tuple[Pose, Pose]:
    """The network's error against the exact eps at one time, in `count` noisy poses; a number for each part.

    Returns:
        The root of the summed squared errors divided by the summed squares of the exact eps (1 for a prediction of 0),
        and the cosine between the predicted and the exact eps.
    """
    times = jnp.broadcast_to(t, (count,))
    x, exact = noisy(key, data, noise, Pose(times, times, times))
    found = networks.noise_model(params, context, noise)(x, t)
    error = jax.tree.map(lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2) / jnp.sum(b**2)), found, exact)
    cosine = jax.tree.map(lambda a, b: jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2)), found, exact)
    return error, cosine
