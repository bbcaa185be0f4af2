"""How parameters move: one Optax transformation for each group of them."""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine to 2 %."""
    schedule = optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.95), optax.scale_by_learning_rate(schedule)
    )


def rmsprop(rate: float, steps: int) -> optax.GradientTransformation:
    """RMSprop with momentum 0.9 as PyTorch defines it, at a constant rate."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_rms(decay=0.99, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale_by_learning_rate(rate),
    )


def sgd(rate: float, steps: int) -> optax.GradientTransformation:
    """Gradient descent at a constant rate."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_learning_rate(rate))


class Damping(NamedTuple):
    """The state of `levenberg_marquardt`."""

    damping: Float[Array, ""]


@lru_cache(maxsize=32)
def levenberg_marquardt(largest: float = 1.0, tries: int = 6) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt: delta solves (A + mu diag A) delta = -g, and mu grows until the loss falls.

    `update` needs `matrix` (A, in the order of `ravel_pytree`), `value` (the loss here) and `value_fn` (the loss at
    other parameters). The update is zero if no mu lowers the loss. After a success mu falls.

    Args:
        largest: the most that a logit may change in a step; beyond, the quadratic model means little.
        tries: how often mu may grow within a step.

    Reference: Marquardt, SIAM J. Appl. Math. 11 (1963).
    """

    def init(params: Any) -> Damping:
        return Damping(jnp.asarray(1e-2))

    def update(updates: Any, state: Any, params: Any = None, **around: Any) -> tuple[Any, Damping]:
        matrix, value, value_fn = (around[name] for name in ("matrix", "value", "value_fn"))
        gradient, unravel = ravel_pytree(updates)
        diagonal = jnp.maximum(jnp.diag(matrix), 1e-6 * jnp.diag(matrix).max() + 1e-12)

        def candidate(damping: Array) -> Any:
            step = unravel(-jnp.linalg.solve(matrix + jnp.diag(damping * diagonal), gradient))
            factor = jnp.minimum(1.0, largest / jnp.maximum(jnp.abs(step.logits).max(), 1e-12))
            return jax.tree.map(lambda leaf: factor * leaf, step)

        def again(carry: tuple[Array, Array, Array, Any]) -> Array:
            tried, lower, _, _ = carry
            return ~lower & (tried < tries)

        def attempt(carry: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
            tried, _, damping, _ = carry
            damping = jnp.where(tried > 0, 5 * damping, damping)
            step = candidate(damping)
            lower = value_fn(jax.tree.map(jnp.add, params, step)) < value
            return tried + 1, lower, damping, step

        none = jax.tree.map(jnp.zeros_like, updates)
        start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), state.damping, none)
        _, lower, damping, last = jax.lax.while_loop(again, attempt, start)
        step = jax.tree.map(lambda leaf: jnp.where(lower, leaf, 0.0), last)
        return step, Damping(jnp.where(lower, jnp.maximum(damping / 5, 1e-6), damping))

    return optax.GradientTransformationExtraArgs(init, update)


RULES = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


@lru_cache(maxsize=32)
def make_optimizer(
    logits_rule: str,
    logits_rate: float,
    shifts_rule: str,
    shifts_rate: float,
    steps: int,
    coefficients_rule: str = "adam",
    coefficients_rate: float = 0.01,
) -> optax.GradientTransformation:
    """One Optax transformation for each group of parameters; its gradients are clipped to norm 1.

    The same arguments return the same object, so that nothing is compiled twice.

    Args:
        logits_rule, shifts_rule, coefficients_rule: names in RULES.
        logits_rate: learning rate of the logits.
        shifts_rate: learning rate of the shifts, in the units of the space.
        steps: steps over which the rates fall, where they do.
        coefficients_rate: learning rate of the coefficients' relative changes, where they are learned.

    Raises:
        ValueError: if a rule is unknown.
    """
    for rule in (logits_rule, shifts_rule, coefficients_rule):
        if rule not in RULES:
            raise ValueError(f"an optimizer must be one of {sorted(RULES)}, got {rule!r}")
    rules: dict[Hashable, optax.GradientTransformation] = {
        "logits": RULES[logits_rule](logits_rate, steps),
        "shifts": RULES[shifts_rule](shifts_rate, steps),
        "coefficients": RULES[coefficients_rule](coefficients_rate, steps),
    }
    return optax.multi_transform(rules, _groups)


def _groups(params: Any) -> Any:
    """The name of each parameter's group."""
    coefficients = jax.tree.map(lambda _: "coefficients", params.coefficients)
    return params._replace(logits="logits", shifts="shifts", coefficients=coefficients)
