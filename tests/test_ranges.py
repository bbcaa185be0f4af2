"""Ranges: a number out of its range is refused by its name, with what is allowed."""

import math

import numpy as np
import pytest

from ld3_jax import ranges


@pytest.mark.parametrize(
    ("allowed", "values"),
    [
        (ranges.COUNT, [1, np.int64(7), 2**31 - 1]),
        (ranges.COUNT_OR_ZERO, [0]),
        (ranges.COUNT.or_none(), [None, 3]),
        (ranges.SEED, [0, 2**32 - 1]),
        (ranges.POSITIVE, [1e-30, 5, np.float32(2)]),
        (ranges.NOT_NEGATIVE, [0, 1e30]),
        (ranges.UP_TO_ONE, [1, 0.5]),
        (ranges.SHARE, [0, 1.0]),
        (ranges.LESS_THAN_ONE, [0, 0.999]),
        (ranges.SHIFT, [0.0, 0.5]),
    ],
)
def test_what_is_allowed_is_taken(allowed, values):
    given = {f"n[{i}]": value for i, value in enumerate(values)}
    assert [allowed.lacks(value) for value in values] == [""] * len(values)
    assert ranges.check(given, dict.fromkeys(given, allowed)) is None


@pytest.mark.parametrize(
    ("allowed", "value", "message"),
    [
        (ranges.COUNT, 0, "n must be at least 1, got 0"),
        (ranges.COUNT, 2**31, "n must be at most 2147483647, got 2147483648"),
        (ranges.COUNT, 2.0, "n must be a whole number, got 2.0"),
        (ranges.COUNT, True, "n must be a whole number, got True"),
        (ranges.COUNT, None, "n must be a whole number, got None"),
        (ranges.COUNT.or_none(), 0, "n must be at least 1, got 0"),
        (ranges.SEED, -1, "n must be at least 0, got -1"),
        (ranges.POSITIVE, 0.0, "n must be greater than 0, got 0.0"),
        (ranges.POSITIVE, math.inf, "n must be finite, got inf"),
        (ranges.POSITIVE, math.nan, "n must be a number, got nan"),
        (ranges.POSITIVE, "1", "n must be a number, got '1'"),
        (ranges.NOT_NEGATIVE, -0.5, "n must be at least 0, got -0.5"),
        (ranges.LESS_THAN_ONE, 1.0, "n must be less than 1, got 1.0"),
        (ranges.SHARE, 1.5, "n must be at most 1, got 1.5"),
        (ranges.SHIFT, 5.0, "n must be at most 0.5, got 5.0"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(allowed, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ranges.check({"n": value}, {"n": allowed})
