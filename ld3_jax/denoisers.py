"""From any network's output to the noise prediction that the solvers take.

A *network* is a callable `network(x, t, cond)` that holds its weights as a pytree, for instance
`jax.tree_util.Partial(module.apply, weights)`. Each function below wraps one callable of that kind in another by
`jax.tree_util.Partial`, so whatever the depth, the weights stay leaves of the result: they cross `jax.jit` as arguments
and are never compiled in as constants.

Shapes: `x` is (batch, ...) or a pytree of such arrays, `t` a scalar, `cond` a pytree with leading axis batch, or None.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.schedules import NoiseSchedule

Model = Callable[[PyTree, Array, PyTree], PyTree]


def to_noise(network: Model, schedule: NoiseSchedule, prediction: str) -> Partial:
    """A network that predicts `prediction` as one that predicts noise.

    With x = alpha x_0 + sigma eps, the outputs are
        noise   eps
        data    x_0, so eps = (x - alpha x_0) / sigma
        v       alpha eps - sigma x_0, so eps = alpha v + sigma x  (variance-preserving schedules)
        score   grad log p(x) = -eps / sigma
        flow    eps - x_0, so eps = (x + alpha u) / (alpha + sigma)

    Args:
        network: network(x, t, cond) -> prediction.
        schedule: the schedule that the network was trained with.
        prediction: one of PREDICTIONS.

    Returns:
        model(x, t, cond) -> eps.

    Raises:
        ValueError: if `prediction` is not one of PREDICTIONS.

    Reference: Salimans and Ho, arXiv:2202.00512 (v); Song et al., arXiv:2011.13456 (score); Liu et al.,
    arXiv:2209.03003 (flow).
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {sorted(PREDICTIONS)}, got {prediction!r}")
    return Partial(PREDICTIONS[prediction], schedule, network)


def to_data(model: Model, schedule: NoiseSchedule) -> Partial:
    """A noise-predicting model as one that predicts data: x_0 = (x - sigma(t) eps) / alpha(t).

    Args:
        model: model(x, t, cond) -> eps.
        schedule: its noise schedule.

    Returns:
        model(x, t, cond) -> x_0.
    """
    return Partial(_noise_to_data, schedule, model)


def edm_preconditioned(network: Model, sigma_data: float = 0.5) -> Partial:
    """EDM's denoiser D(x; sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4), for `ve_edm`, where t = sigma.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2),
    c_in = 1 / sqrt(sigma^2 + sigma_data^2).

    Args:
        network: the raw network F(c_in x, c_noise, cond).
        sigma_data: standard deviation of the data.

    Returns:
        network(x, sigma, cond) -> x_0; make it a noise prediction with `to_noise(..., "data")`.

    Reference: Karras et al., arXiv:2206.00364, table 1.
    """
    return Partial(_edm, network, sigma_data)


def guided(model: Model, uncond: PyTree, scale: float) -> Partial:
    """Classifier-free guidance, eps = eps_uncond + scale (eps_cond - eps_uncond), in one call on a doubled batch.

    Args:
        model: conditional model(x, t, cond) -> eps.
        uncond: the condition that stands for "none", of one sample: a pytree like `cond` without the batch axis.
        scale: 1 is the conditional model itself, larger follows the condition more closely.

    Returns:
        model(x, t, cond) -> guided eps.

    Reference: Ho and Salimans, arXiv:2207.12598, in the form where scale 1 means no guidance.
    """
    return Partial(_guided, model, uncond, scale)


def _from_noise(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    return network(x, t, cond)


def _from_data(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jax.tree.map(lambda x, data: (x - alpha * data) / sigma, x, network(x, t, cond))


def _from_v(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jax.tree.map(lambda x, v: alpha * v + sigma * x, x, network(x, t, cond))


def _from_score(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    return jax.tree.map(lambda score: -schedule.sigma(t) * score, network(x, t, cond))


def _from_flow(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jax.tree.map(lambda x, flow: (x + alpha * flow) / (alpha + sigma), x, network(x, t, cond))


def _noise_to_data(schedule: NoiseSchedule, model: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jax.tree.map(lambda x, noise: (x - sigma * noise) / alpha, x, model(x, t, cond))


def _edm(network: Model, sigma_data: Float[Array, ""] | float, x: PyTree, sigma: Array, cond: PyTree = None) -> PyTree:
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data * total**-0.5, total**-0.5
    raw = network(jax.tree.map(lambda x: c_in * x, x), jnp.log(sigma) / 4, cond)
    return jax.tree.map(lambda x, raw: c_skip * x + c_out * raw, x, raw)


def _guided(
    model: Model, uncond: PyTree, scale: Float[Array, ""] | float, x: PyTree, t: Array, cond: PyTree = None
) -> PyTree:
    def halves(cond: Array, uncond: Array) -> Array:
        return jnp.concatenate([cond, jnp.broadcast_to(uncond, cond.shape)])

    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), x)
    both = model(doubled, t, jax.tree.map(halves, cond, uncond))

    def combine(eps: Array) -> Array:
        with_cond, without = jnp.split(eps, 2)
        return without + scale * (with_cond - without)

    return jax.tree.map(combine, both)


PREDICTIONS = {
    "noise": _from_noise,
    "data": _from_data,
    "v": _from_v,
    "score": _from_score,
    "flow": _from_flow,
}
