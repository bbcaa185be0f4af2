"""Which values are allowed, by range or by kind, and the error for anything else."""

import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_INT32 = 2**31 - 1
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class Range(NamedTuple):
    """Which numbers of Python, NumPy or JAX are allowed; NaN never is."""

    least: float
    most: float = math.inf
    whole: bool = False
    above: bool = False  # greater than the least, not equal to it
    below: bool = True  # where the most is infinite or not allowed itself
    optional: bool = False  # None is also allowed

    def lacks(self, value: Any) -> str:
        """What a value should be but is not; "" if it is allowed."""
        if (value is None and self.optional) or (isinstance(value, Tracer) and not self.whole):
            return ""
        number = self.plain(value)
        if type(number) not in ((int,) if self.whole else (int, float)) or number != number:
            return "a whole number" if self.whole else "a number"
        if number < self.least or (self.above and number == self.least):
            return f"{'greater than' if self.above else 'at least'} {self.least}"
        if number > self.most or (self.below and number == self.most):
            return "finite" if self.most == math.inf else f"{'less than' if self.below else 'at most'} {self.most}"
        return ""

    def plain(self, value: Any) -> Any:
        """A scalar as a Python number, which can be hashed and written as JSON; anything else as it is."""
        if type(value) in (int, float):
            return value
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError):  # a tracer, a ragged list, a tensor with a gradient
            return value
        kind = np.integer if self.whole or jnp.issubdtype(array.dtype, np.integer) else jnp.floating
        return array.item() if array.ndim == 0 and jnp.issubdtype(array.dtype, kind) else value

    def or_none(self) -> "Range":
        """The same, and None."""
        return self._replace(optional=True)


class Kind(NamedTuple):
    """Which values are allowed, other than single numbers."""

    what: str
    allows: Callable[[Any], bool]
    plain: Callable[[Any], Any] = lambda value: value

    def lacks(self, value: Any) -> str:
        """What a value should be but is not; "" if it is allowed."""
        return "" if self.allows(value) else self.what

    def or_none(self) -> "Kind":
        """The same, and None."""
        return Kind(f"{self.what}, or None", lambda value: value is None or self.allows(value))


COUNT = Range(1, _INT32, whole=True, below=False)
COUNT_OR_ZERO = COUNT._replace(least=0)
CALLS = COUNT._replace(most=10_000)  # network calls or steps of a grid: in float32, more times would not all differ
SEED = Range(0, 2**32 - 1, whole=True, below=False)
NUMBER = Range(-math.inf, below=False)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
UP_TO_ONE = Range(0, 1, above=True, below=False)
SHARE = Range(0, 1, below=False)
LESS_THAN_ONE = Range(0, 1)
SHIFT = Range(0, 0.5, below=False)  # beyond half a gap, times could change their order
FLAG = Kind("True or False", lambda value: isinstance(value, bool | np.bool_), bool)
TEXT = Kind("a text", lambda value: isinstance(value, str))
PATH = Kind("a path", lambda value: isinstance(value, str | os.PathLike))
FUNCTION = Kind("a function", callable)
ARRAYS = Kind("arrays that JAX takes", lambda tree: object not in _dtypes(tree))
STATES = Kind(
    "arrays of real floating-point numbers",
    lambda tree: bool(found := _dtypes(tree)) and all(jnp.issubdtype(one, jnp.floating) for one in found),
)


def instance(of: type) -> Kind:
    """Values of a class, or of a protocol."""
    return Kind(f"of type {of.__name__}", lambda value: isinstance(value, of) and not isinstance(value, type))


def static(of: type) -> Kind:
    """Values of a class or protocol that `jax.jit` takes as static: equal values share a compiled program.

    A subclass without its own decorator compares only by its base's fields; a value that is not frozen may change.
    """

    def allows(value: Any) -> bool:
        params = vars(type(value)).get("__dataclass_params__")
        return instance(of).allows(value) and params is not None and params.frozen and not jax.tree.leaves(value)

    how = "its class decorated with @dataclass(frozen=True) and registered by jax.tree_util.register_static"
    return Kind(f"{instance(of).what}, {how}", allows)


def one_of(names: Collection[str]) -> Kind:
    """Some names, for instance the keys of a dict."""
    return Kind(f"one of {sorted(names)}", lambda value: isinstance(value, str) and value in names)


def check(values: Mapping[str, Any], allowed: Mapping[str, Range | Kind]) -> dict[str, Any]:
    """Refuse values that are not allowed.

    Args:
        values: by name; for a dataclass, `vars(self)`.
        allowed: the ranges or kinds of the values to check.

    Returns:
        These values, with Python's own numbers.

    Raises:
        ValueError: it names the value, what was given and what is allowed.
    """
    for name, one in allowed.items():
        if lacking := one.lacks(values[name]):
            raise ValueError(f"{name} must be {lacking}, got {shown(values[name])}")
    return {name: one.plain(values[name]) for name, one in allowed.items()}


def settle(record: Any, allowed: Mapping[str, Range | Kind]) -> None:
    """`check` a frozen dataclass when it is built; its numbers become Python's own."""
    for name, value in check(vars(record), allowed).items():
        object.__setattr__(record, name, value)


def entrance(**allowed: Range | Kind) -> Callable[[Callable[_Args, _Result]], Callable[_Args, _Result]]:
    """A decorator: `check` the arguments with these names; numbers become Python's own."""

    def of(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
        names = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            given |= check(given, {name: one for name, one in allowed.items() if name in given})
            args = (*map(given.get, names[: len(args)]), *args[len(names) :])  # the function reports what does not fit
            return function(*args, **{name: given[name] for name in kwargs})

        return checked

    return of


def call(function: Callable, how: str, *args: Any) -> Any:
    """Call a user's function(*args); if it cannot be called like this, the error says `how` it is called.

    Raises:
        ValueError: from an error of another type.
    """
    try:
        found = function(*args)
    except (TypeError, LookupError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        given = ", ".join(map(shown, args))
        raise ValueError(f"{how}; given ({given}) it raises {type(error).__name__}: {first:.200}") from error
    check({f"{how}; its output": found}, {f"{how}; its output": ARRAYS})
    return found


def shown(value: Any) -> str:
    """A value on one line, with each array as its dtype and shape."""
    short = jax.tree.map(lambda one: f"{one.dtype}{list(one.shape)}" if getattr(one, "shape", ()) else one, value)
    return f"{' '.join(repr(short).split()):.200}"


def _dtypes(tree: Any) -> list[Any]:
    """The dtype of each leaf; `object` for a leaf that is not an array."""
    try:
        return [jax.typeof(leaf).dtype for leaf in jax.tree.leaves(tree)]
    except TypeError:
        return [object]
