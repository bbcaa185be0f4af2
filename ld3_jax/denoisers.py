"""A network states what it predicts, a solver states what it needs, and one conversion connects them.

A *network* is a callable `network(x, t, cond)` that holds its weights as a pytree, for instance
`jax.tree_util.Partial(module.apply, weights)`; a plain function is taken to hold no weights. Each function below wraps
one callable in another that is a pytree, so the weights stay leaves of the result at any depth: they cross
`jax.jit` as arguments, never as constants.
A *model* is a network that predicts noise, for instance a `Denoiser`.

Shapes: `x` is (batch, ...) or a pytree of such arrays, `t` a scalar, `cond` a pytree with leading axis batch, or None.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.ranges import ARRAYS, FUNCTION, NUMBER, POSITIVE, STATES, call, check, entrance, instance, one_of, shown
from ld3_jax.schedules import NoiseSchedule

Model = Callable[[PyTree, Array, PyTree], PyTree]


# With x = alpha x_0 + sigma eps, an output is a x_0 + b eps: (a, b) by alpha and sigma.
PREDICTIONS = {
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "data": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "score": lambda alpha, sigma: (0.0, -1 / sigma),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
    "reversed_flow": lambda alpha, sigma: (1.0, -1.0),
}


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network of any prediction as a model: called, it predicts noise. See `to_noise`.

    Attributes:
        predict: predict(x, t, cond) -> the prediction.
        schedule: the noise schedule that the network was trained with.
        prediction: what the network predicts, one of PREDICTIONS.
    """

    predict: Partial
    schedule: NoiseSchedule
    prediction: str

    def __call__(self, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
        """The noise prediction eps."""
        return _converted(self, "noise", x, t, cond)


# It has the leaves of `predict` under the same paths: schedule files hold a digest over paths and weights.
jax.tree_util.register_pytree_node(
    Denoiser,
    lambda model: (
        (model.predict.args, model.predict.keywords),
        (model.predict.func, model.schedule, model.prediction),
    ),
    lambda static, children: Denoiser(Partial(static[0], *children[0], **children[1]), *static[1:]),
)


def as_pytree(function: Callable) -> Callable:
    """A callable that `jax.jit` takes as an argument; a callable that is not a pytree is assumed to hold no weights.

    A module may hold functions and choices as leaves: they become static, and only arrays and floats remain leaves.
    """
    check({"a model, loss or decoder": function}, {"a model, loss or decoder": FUNCTION})
    if jax.tree_util.all_leaves([function]):
        return Partial(function)
    if all(map(_is_data, jax.tree.leaves(function))):
        return function
    return Partial(_assembled, jax.tree.map(lambda leaf: leaf if _is_data(leaf) else _Static(leaf), function))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    value: Any


def _is_data(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or type(leaf) in (float, complex)


def _assembled(module: PyTree, *args: PyTree) -> PyTree:
    """A call of a module whose static leaves were wrapped."""
    whole = jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, _Static) else leaf, module, is_leaf=lambda x: isinstance(x, _Static)
    )
    return whole(*args)


@entrance(schedule=instance(NoiseSchedule), prediction=one_of(PREDICTIONS))
def to_noise(network: Model, schedule: NoiseSchedule, prediction: str) -> Denoiser:
    """A network that predicts `prediction` as one that predicts noise.

    With x = alpha x_0 + sigma eps, the outputs are
        noise   eps
        data    x_0
        v       alpha eps - sigma x_0
        score   grad log p(x) = -eps / sigma
        flow    eps - x_0
        reversed_flow   x_0 - eps

    Args:
        network: network(x, t, cond) -> prediction.
        schedule: the noise schedule that the network was trained with.
        prediction: one of PREDICTIONS.

    Returns:
        model(x, t, cond) -> eps.

    Raises:
        ValueError: if `prediction` is not one of PREDICTIONS.

    Reference: Salimans and Ho, arXiv:2202.00512 (v); Song et al., arXiv:2011.13456 (score); Liu et al.,
    arXiv:2209.03003 (flow).
    """
    return Denoiser(Partial(_as_it_is, schedule, as_pytree(network)), schedule, prediction)


def prediction_of(model: Model) -> str | None:
    """What the network inside a model predicts, one of PREDICTIONS; None if no `Denoiser` in it says so."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Denoiser))
    predictions = {node.prediction for node in nodes if isinstance(node, Denoiser)}
    return predictions.pop() if len(predictions) == 1 else None


@entrance(model=FUNCTION, schedule=instance(NoiseSchedule), prediction=one_of(("noise", "data")))
def convert(model: Model, schedule: NoiseSchedule, prediction: str) -> Model:
    """A model as a solver needs it.

    A `Denoiser` converts directly from what its network predicts, or not at all if that is what is needed, so that
    no digits are lost on the way through the noise.

    Args:
        model: model(x, t, cond) -> eps.
        schedule: its noise schedule.
        prediction: "noise" or "data".

    Returns:
        model(x, t, cond) -> eps or x_0.

    Raises:
        ValueError: if `prediction` is something else.
    """
    if prediction == "noise":
        return model
    return Partial(_data, model if isinstance(model, Denoiser) else to_noise(model, schedule, "noise"))


def edm_preconditioned(network: Model, sigma_data: Float[Array, ""] | float = 0.5) -> Partial:
    """EDM's denoiser D(x; sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4), for `VELinear`, where t = sigma.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2),
    c_in = 1 / sqrt(sigma^2 + sigma_data^2).

    Args:
        network: the raw network F(c_in x, c_noise, cond).
        sigma_data: standard deviation of the data.

    Returns:
        network(x, sigma, cond) -> x_0; make it a noise prediction with `to_noise(..., "data")`.

    Reference: Karras et al., arXiv:2206.00364, table 1.
    """
    check({"sigma_data": sigma_data}, {"sigma_data": STATES if np.ndim(sigma_data) else POSITIVE})
    return Partial(_edm, as_pytree(network), sigma_data)


def guided(model: Model, uncond: PyTree, scale: float) -> Partial:
    """Classifier-free guidance, eps = eps_uncond + scale (eps_cond - eps_uncond), in one call on a doubled batch.

    The formula is the same for a network with any other prediction; pass the result to `to_noise`.

    Args:
        model: conditional model(x, t, cond) -> eps.
        uncond: the condition that stands for "none", of one sample: a pytree like `cond` without the batch axis.
        scale: 1 is the conditional model itself, larger follows the condition more closely.

    Returns:
        model(x, t, cond) -> guided eps; it raises a ValueError if it gets no condition.

    Reference: Ho and Salimans, arXiv:2207.12598, in the form where scale 1 means no guidance.
    """
    check({"scale": scale, "uncond": uncond}, {"scale": STATES if np.ndim(scale) else NUMBER, "uncond": ARRAYS})
    return Partial(_guided, as_pytree(model), uncond, scale)


def predicted(model: Model, x: PyTree, t: PyTree, cond: PyTree, like: PyTree) -> PyTree:
    """model(x, t, cond), in the dtypes of a state.

    Raises:
        ValueError: if it cannot be called like this, its output does not have the shapes of `like`, or is not
            real and floating-point.
    """
    output = call(model, "a network is called as network(x, t, cond) with a scalar t", x, t, cond)
    got, expected = (jax.tree.map(np.shape, tree) for tree in (output, like))
    if got != expected:
        raise ValueError(f"a network's output must have the shape of its input, {expected}, got {got}")
    check({"a network's output": output}, {"a network's output": STATES})
    return jax.tree.map(lambda one, of: jnp.asarray(one, jnp.result_type(of)), output, like)


def _as_it_is(schedule: NoiseSchedule, network: Model, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    return network(x, t, cond)


def _data(model: Denoiser, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    return _converted(model, "data", x, t, cond)


def _converted(model: Denoiser, wanted: str, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    """Solve x = alpha x_0 + sigma eps and the output = a x_0 + b eps for x_0 or eps."""
    if model.prediction == wanted:
        return model.predict(x, t, cond)
    output = predicted(model.predict, x, t, cond, x)
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    a, b = PREDICTIONS[model.prediction](alpha, sigma)
    determinant = alpha * b - sigma * a
    of_x, of_output = {"noise": (-a, alpha), "data": (b, -sigma)}[wanted]
    return jax.tree.map(lambda x, output: (of_x * x + of_output * output) / determinant, x, output)


def _edm(network: Model, sigma_data: Float[Array, ""] | float, x: PyTree, sigma: Array, cond: PyTree = None) -> PyTree:
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data * total**-0.5, total**-0.5
    raw = predicted(network, jax.tree.map(lambda x: c_in * x, x), jnp.log(sigma) / 4, cond, x)
    return jax.tree.map(lambda x, raw: c_skip * x + c_out * raw, x, raw)


def _guided(
    model: Model, uncond: PyTree, scale: Float[Array, ""] | float, x: PyTree, t: Array, cond: PyTree = None
) -> PyTree:
    if jax.tree.structure(cond) != jax.tree.structure(uncond):
        raise ValueError(
            f"a guided model needs a condition for each sample, got cond={shown(cond)} with uncond={shown(uncond)}"
        )

    def halves(cond: Array, uncond: Array) -> Array:
        return jnp.concatenate([cond, jnp.broadcast_to(uncond, cond.shape)])

    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), x)
    both = model(doubled, t, jax.tree.map(halves, cond, uncond))

    def combine(eps: Array) -> Array:
        with_cond, without = jnp.split(eps, 2)
        return without + scale * (with_cond - without)

    return jax.tree.map(combine, both)
