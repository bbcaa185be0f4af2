"""Optax transformations as the learning of times uses them: values, so that equal ones compile nothing twice.

Optax builds a transformation of closures, which are equal to themselves alone. Those of this module compare by what
they were made of, and build the closures where they are used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import optax

from ld3_jax.ranges import COUNT, NOT_NEGATIVE, TEXT, check, instance, settle


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


@dataclass(frozen=True)
class Rule:
    """make(rate, steps) as an Optax transformation that compares by value.

    Raises:
        ValueError: if the rate is negative or not finite, or there is no step.
    """

    make: Callable[[float, int], optax.GradientTransformation]
    rate: float
    steps: int

    def __post_init__(self) -> None:
        settle(self, {"rate": NOT_NEGATIVE, "steps": COUNT})

    def init(self, params: Any) -> Any:
        """The initial state."""
        return self.make(self.rate, self.steps).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """Updates from gradients, and the next state."""
        return self.make(self.rate, self.steps).update(updates, state, params)


@dataclass(frozen=True)
class ByGroup:
    """One transformation for each group of numbers; groups without one do not move. See `by_group`."""

    rules: tuple[tuple[str, Optimizer], ...]

    def init(self, params: Mapping) -> Any:
        """The initial state."""
        return self._together().init(params)

    def update(self, updates: Mapping, state: Any, params: Mapping | None = None) -> tuple[Any, Any]:
        """Updates from gradients, and the next state."""
        return self._together().update(updates, state, params)

    def _together(self) -> optax.GradientTransformation:
        rules: dict[str, Any] = dict(self.rules)
        return optax.multi_transform(
            {"": optax.set_to_zero(), **rules}, lambda params: {name: name if name in rules else "" for name in params}
        )


def by_group(rules: Mapping[str, Optimizer]) -> ByGroup:
    """One transformation for each group of numbers.

    Args:
        rules: name of a group -> its transformation, of this module or of Optax.
    """
    check({"rules": rules}, {"rules": instance(Mapping)})
    for group, rule in rules.items():
        check({"a group": group, "its rule": rule}, {"a group": TEXT, "its rule": instance(Optimizer)})
    return ByGroup(tuple(sorted(rules.items(), key=lambda item: item[0])))


def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.scale_by_learning_rate(lambda count: schedule(count.astype(float))),
    )


def _rmsprop(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_rms(decay=0.99, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_learning_rate(rate))


# Rules of (rate, steps); all clip gradients to norm 1.
adam = partial(Rule, _adam)  # its rate falls along a cosine to 2 %
rmsprop = partial(Rule, _rmsprop)  # with momentum 0.9 as PyTorch defines it, at a constant rate
sgd = partial(Rule, _sgd)  # at a constant rate
RULES = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}
