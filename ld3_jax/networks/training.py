"""Training a network: steps of Adam or Muon under jit, a moving average of the parameters, exact resumption.

Reference: Kingma and Ba, arXiv:1412.6980 (Adam); Jordan et al., kellerjordan.github.io/posts/muon (Muon).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, PyTree, UInt8

from ld3_jax.batches import spread
from ld3_jax.ranges import COUNT, POSITIVE, SHARE, check, one_of

_RULES = {"adam": optax.adam, "muon": optax.contrib.muon}


@dataclass(frozen=True)
class Recipe:
    """A rate that rises, then falls by a cosine to 0; the result is a moving average of the parameters.

    Attributes:
        steps: number of steps.
        batch_size: samples of each.
        rate: the largest.
        average: share of the moving average that a step keeps.
        rule: "adam", or "muon", which orthogonalises the changes of matrices.

    Raises:
        ValueError: if a number is out of its range, or the rule is unknown.
    """

    steps: int = 2500
    batch_size: int = 16
    rate: float = 3e-3
    average: float = 0.998
    rule: str = "adam"

    def __post_init__(self) -> None:
        allowed = {"steps": COUNT, "batch_size": COUNT, "rate": POSITIVE, "average": POSITIVE, "rule": one_of(_RULES)}
        check(vars(self), allowed)

    def optimizer(self) -> optax.GradientTransformation:
        """Clipping of the gradient to norm 1, then the rule."""
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, min(200, self.steps // 10), self.steps)
        return optax.chain(optax.clip_by_global_norm(1.0), _RULES[self.rule](rate))


class State(NamedTuple):
    """All that training needs to go on.

    Attributes:
        step: steps done.
        params: the parameters.
        average: their moving average.
        rule: the optimiser's state.
    """

    step: Int32[Array, ""]
    params: PyTree
    average: PyTree
    rule: PyTree


def begin(params: PyTree, recipe: Recipe) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, params, recipe.optimizer().init(params))


def train(
    loss: Callable[..., Float[Array, ""]],
    state: State,
    key: PRNGKeyArray,
    recipe: Recipe,
    *args: PyTree,
    every: int = 25,
) -> Iterator[tuple[State, float]]:
    """Train a network.

    Args:
        loss: loss(params, key, *args) of a batch that it draws by the key.
        state: from `begin`, or where an earlier run ended.
        key: of the batches; that of a step depends on its number alone.
        recipe: how.
        args: data, which cross jit as arguments.
        every: steps between reports.

    Yields:
        At the multiples of `every`, and at the end: the state, and the mean loss since the last report.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    rule = recipe.optimizer()

    @jax.jit
    def step(state: State, *args: PyTree) -> tuple[State, Array]:
        of_step = jax.random.fold_in(key, state.step)
        value, slope = jax.value_and_grad(loss)(state.params, of_step, *args)
        change, rule_state = rule.update(slope, state.rule, state.params)
        params = optax.apply_updates(state.params, change)
        kept = jnp.minimum(recipe.average, (1 + state.step) / (10 + state.step))  # the first ones are soon forgotten
        average = optax.incremental_update(params, state.average, 1 - kept)
        return State(state.step + 1, params, average, rule_state), value

    values = []
    for done in range(int(state.step) + 1, recipe.steps + 1):
        state, value = step(state, *args)
        values.append(value)
        if done % every == 0 or done == recipe.steps:
            mean = float(jnp.stack(values).mean())
            if not jnp.isfinite(mean):
                raise FloatingPointError(f"the loss is not finite by step {done}; a lower rate may help")
            yield state, mean
            values = []


@dataclass(frozen=True)
class Denoising:
    """EDM's loss on batches drawn from labelled images: the mean of w(sigma) (D(y + sigma eps; sigma) - y)^2.

    With w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 it is the squared error of the raw output F against
    (y - c_skip x) / c_out, which is what is computed.

    Attributes:
        network: the raw network F(c_in x, c_noise, labels) -> output, as `apply({"params": params}, ...)`.
        classes: number of classes.
        batch_size: images of a batch.
        label_dropout: share of images whose class the network does not see, so that it can be guided.
        flips: whether half of the images are mirrored.
        log_mean, log_deviation: of log(sigma), which is normal.
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: if a number is out of its range.

    Reference: Karras et al., arXiv:2206.00364, table 1; Ho and Salimans, arXiv:2207.12598 (label_dropout).
    """

    network: nn.Module
    classes: int
    batch_size: int
    label_dropout: float = 0.1
    flips: bool = False
    log_mean: float = -1.2
    log_deviation: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        allowed = {"classes": COUNT, "batch_size": COUNT, "label_dropout": SHARE, "log_deviation": POSITIVE}
        check(vars(self), allowed | {"sigma_data": POSITIVE})

    def __call__(
        self, params: PyTree, key: PRNGKeyArray, images: UInt8[Array, "n h w c"], labels: Int[Array, "n"]
    ) -> Float[Array, ""]:
        """The loss of the batch that a key draws.

        Args:
            params: of the network.
            key: of the batch, its noise, and the classes that are dropped.
            images, labels: all that are trained on.
        """
        which, level, noise, drop, flip = jax.random.split(key, 5)
        chosen = jax.random.randint(which, (self.batch_size,), 0, len(images))
        y = spread(images[chosen].astype(jnp.float32) / 127.5 - 1)
        one_hot = jax.nn.one_hot(labels[chosen], self.classes)
        shape = (self.batch_size, 1, 1, 1)
        if self.flips:
            y = jnp.where(jax.random.bernoulli(flip, 0.5, shape), y[:, :, ::-1], y)
        one_hot = one_hot * jax.random.bernoulli(drop, 1 - self.label_dropout, (self.batch_size, 1))
        sigma = jnp.exp(self.log_mean + self.log_deviation * jax.random.normal(level, shape))
        x = y + sigma * jax.random.normal(noise, y.shape)
        total = sigma**2 + self.sigma_data**2
        output: Any = self.network.apply({"params": params}, x * total**-0.5, jnp.log(sigma[:, 0, 0, 0]) / 4, one_hot)
        wanted = (y - self.sigma_data**2 / total * x) / (sigma * self.sigma_data * total**-0.5)
        return jnp.mean((output - wanted) ** 2)
