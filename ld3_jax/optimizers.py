"""How parameters move: one Optax transformation for each group of them."""

from collections.abc import Hashable
from functools import lru_cache

import optax


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


RULES = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


@lru_cache(maxsize=32)
def make_optimizer(
    logits_rule: str, logits_rate: float, shifts_rule: str, shifts_rate: float, steps: int
) -> optax.GradientTransformation:
    """One Optax transformation for each group of parameters; its gradients are clipped to norm 1.

    The same arguments return the same object, so that nothing is compiled twice.

    Args:
        logits_rule, shifts_rule: names in RULES.
        logits_rate: learning rate of the logits.
        shifts_rate: learning rate of the shifts, in the units of the space.
        steps: steps over which the rates fall, where they do.

    Raises:
        ValueError: if a rule is unknown.
    """
    for rule in (logits_rule, shifts_rule):
        if rule not in RULES:
            raise ValueError(f"an optimizer must be one of {sorted(RULES)}, got {rule!r}")
    rules: dict[Hashable, optax.GradientTransformation] = {
        "logits": RULES[logits_rule](logits_rate, steps),
        "shifts": RULES[shifts_rule](shifts_rate, steps),
    }
    return optax.multi_transform(rules, lambda params: params._replace(logits="logits", shifts="shifts"))
