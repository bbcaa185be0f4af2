"""Ranges that numbers must lie in, and the one error if they do not."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

_INT32 = 2**31 - 1


class Range(NamedTuple):
    """Which numbers are allowed; NaN never is."""

    least: float
    most: float = math.inf
    whole: bool = False
    above: bool = False  # greater than the least, not equal to it
    below: bool = True  # where the most is infinite or not allowed itself
    optional: bool = False  # None is allowed, too

    def lacks(self, value: Any) -> str:
        """What a value should be and is not; "" if it is allowed."""
        if value is None and self.optional:
            return ""
        kind = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool) or value != value:
            return "a whole number" if self.whole else "a number"
        if value < self.least or (self.above and value == self.least):
            return f"{'greater than' if self.above else 'at least'} {self.least}"
        if value > self.most or (self.below and value == self.most):
            return "finite" if self.most == math.inf else f"{'less than' if self.below else 'at most'} {self.most}"
        return ""

    def or_none(self) -> "Range":
        """The same, and None."""
        return self._replace(optional=True)


COUNT = Range(1, _INT32, whole=True, below=False)
COUNT_OR_ZERO = COUNT._replace(least=0)
SEED = Range(0, 2**32 - 1, whole=True, below=False)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
UP_TO_ONE = Range(0, 1, above=True, below=False)
SHARE = Range(0, 1, below=False)
LESS_THAN_ONE = Range(0, 1)
SHIFT = Range(0, 0.5, below=False)  # beyond half a gap, times would change their order


def check(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Refuse numbers out of their ranges.

    Args:
        values: by name; of a dataclass, `vars(self)`.
        ranges: those that are checked.

    Raises:
        ValueError: it names the value, what was given and what is allowed.
    """
    for name, allowed in ranges.items():
        if lacking := allowed.lacks(values[name]):
            raise ValueError(f"{name} must be {lacking}, got {values[name]!r}")
