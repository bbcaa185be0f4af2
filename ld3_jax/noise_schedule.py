"""The base class of noise schedules: alpha and sigma as functions of time, by three formulas in the log domain.

A noise schedule that `ld3_jax.schedules` lacks is one class statement:

    @dataclass(frozen=True)
    class Power(NoiseSchedule):
        t_min, t_max, prior_scale = 0.1, 10.0, 100.0

        def log_alpha(self, t):
            return jnp.zeros_like(t)

        def log_sigma(self, t):
            return 2 * jnp.log(t)

        def inverse_lam(self, lam):
            return jnp.exp(-lam / 2)
"""

import abc
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ld3_jax.space import VECTORS, Space

_LONGEST = 160


class NoiseSchedule(abc.ABC):
    """alpha and sigma as functions of time. Subclass it, as a frozen dataclass, for a noise schedule of your own.

    It compares and hashes by value and is a pytree without leaves: pass it through `jax.jit` like any argument.

    Attributes:
        t_min: time at which sampling ends; the cleanest state. A field, a property or a constant of the subclass.
        t_max: time at which sampling starts; nearly pure noise.
        prior_scale: standard deviation of the state at t_max, so that `x_T = prior_scale * z` with `z ~ N(0, I)`.
        space: where the states lie; vectors by default.
        t_start: the start of the range if it is below full noise (then t_max itself); None if it starts at full noise.

    Raises:
        TypeError: if a subclass lacks a formula or is not a dataclass.
    """

    if TYPE_CHECKING:  # at run time they would come first in the order of a subclass's fields
        t_min: Any
        t_max: Any
        prior_scale: Any
        space: Space
        t_start: Any

    prior_scale = 1.0
    space = VECTORS
    t_start = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)

    def __new__(cls, *_: Any, **__: Any) -> "NoiseSchedule":
        # Without its own fields a class would compare all its instances equal, and jit would mix them up.
        if "__dataclass_fields__" not in vars(cls):
            raise TypeError(f"the noise schedule {cls.__name__} must be decorated with @dataclass(frozen=True)")
        return super().__new__(cls)

    def __str__(self) -> str:
        """Its fields, for messages; long sequences of numbers are cut."""
        text = repr(self)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."

    @property
    def parts(self) -> "tuple[NoiseSchedule, ...]":
        """The noise schedule of each part of a state, if parts have their own; itself if all share it."""
        return (self,)

    @property
    def whole(self) -> "NoiseSchedule":
        """The noise schedule from full noise; itself, unless it starts below full noise."""
        return self

    @abc.abstractmethod
    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log alpha(t), the log of the signal's factor."""

    @abc.abstractmethod
    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log sigma(t), the log of the noise's standard deviation."""

    @abc.abstractmethod
    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The time t at which the half-log-SNR is `lam`."""

    def alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """alpha(t)."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """sigma(t)."""
        return jnp.exp(self.log_sigma(t))

    def lam(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Half the log signal-to-noise ratio, lam(t) = log(alpha(t) / sigma(t))."""
        return self.log_alpha(t) - self.log_sigma(t)
