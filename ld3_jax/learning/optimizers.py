"""The Optax transformations that learning uses.

Optax builds a transformation from closures, which are equal only to themselves, and a learner is static under
`jax.jit`. So equal arguments give the same transformation here, and nothing compiles twice. All clip gradients to norm
1.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import optax

from ld3_jax.ranges import COUNT, NOT_NEGATIVE, TEXT, check, entrance, instance


@runtime_checkable
class Optimizer(Protocol):
    """What an `optax.GradientTransformation` is: two pure functions."""

    @property
    def init(self) -> Callable[..., Any]:
        """init(params) -> state."""
        ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]:
        """update(gradients, state, params) -> (updates, state)."""
        ...


@entrance(rate=NOT_NEGATIVE, steps=COUNT)
@functools.cache
def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine to 2 %."""
    schedule = optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.scale_by_learning_rate(lambda count: schedule(jnp.asarray(count, float))),
    )


@entrance(rate=NOT_NEGATIVE, steps=COUNT)
@functools.cache
def rmsprop(rate: float, steps: int) -> optax.GradientTransformation:
    """RMSprop with momentum 0.9 as PyTorch defines it, at a constant rate."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_rms(decay=0.99, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale_by_learning_rate(rate),
    )


@entrance(rate=NOT_NEGATIVE, steps=COUNT)
@functools.cache
def sgd(rate: float, steps: int) -> optax.GradientTransformation:
    """Gradient descent at a constant rate."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_learning_rate(rate))


RULES = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


def by_group(rules: Mapping[str, Optimizer]) -> optax.GradientTransformation:
    """One transformation for each group of numbers; groups without one do not move.

    Args:
        rules: name of a group -> its transformation, from this module or from Optax.
    """
    check({"rules": rules}, {"rules": instance(Mapping)})
    for group, rule in rules.items():
        check({"a group": group, "its rule": rule}, {"a group": TEXT, "its rule": instance(Optimizer)})
    return _by_group(tuple(sorted(rules.items(), key=lambda item: item[0])))


@functools.cache
def _by_group(rules: tuple[tuple[str, Any], ...]) -> optax.GradientTransformation:
    known = dict(rules)

    def labels(params: Mapping[str, Any]) -> dict[str, str]:
        if unknown := known.keys() - params.keys():
            raise ValueError(f"by_group has rules for {sorted(unknown)}, the groups are {sorted(params)}")
        return {name: name if name in known else "" for name in params}

    return optax.multi_transform({"": optax.set_to_zero(), **known}, labels)
