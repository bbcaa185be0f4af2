"""Optax transformations as the learning of time steps uses them."""

from collections.abc import Mapping
from functools import lru_cache

import optax


@lru_cache(maxsize=32)
def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine to 2 %; gradients are clipped to norm 1."""
    schedule = optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.95), optax.scale_by_learning_rate(schedule)
    )


@lru_cache(maxsize=32)
def rmsprop(rate: float, steps: int) -> optax.GradientTransformation:
    """RMSprop with momentum 0.9 as PyTorch defines it, at a constant rate; gradients are clipped to norm 1."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_rms(decay=0.99, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale_by_learning_rate(rate),
    )


@lru_cache(maxsize=32)
def sgd(rate: float, steps: int) -> optax.GradientTransformation:
    """Gradient descent at a constant rate; gradients are clipped to norm 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_learning_rate(rate))


RULES = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


def by_group(rules: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One transformation for each group of numbers; groups without one do not move.

    Equal arguments return the same object, as those of the rules above do, so that nothing is compiled twice.

    Args:
        rules: name of a group -> its transformation.
    """
    return _by_group(frozenset(rules.items()))


@lru_cache(maxsize=32)
def _by_group(rules: frozenset[tuple[str, optax.GradientTransformation]]) -> optax.GradientTransformation:
    of_group = dict(rules)

    def labels(params: Mapping) -> dict[str, str]:
        return {name: name if name in of_group else "" for name in params}

    return optax.multi_transform({"": optax.set_to_zero(), **of_group}, labels)
