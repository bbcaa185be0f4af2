"""Damaged schedule files: each is refused, with its name and the name of the wrong value."""

import json
import re
from pathlib import Path

import pytest

from ld3_jax.learning import load

GOLDEN = Path(__file__).parent / "golden"
TIMES = [1.0, 0.5, 0.3, 0.2, 0.001]
RECORD = {
    "format": "ld3_jax schedule",
    "version": 1,
    "solver": "unipc",
    "nfe": 4,
    "order": 2,
    "variant": "bh2",
    "lower_order_final": False,
    "t": TIMES,
    "t_c": TIMES,
    "lam": [-5.0, -1.0, 0.0, 1.0, 4.0],
    "model": {},
    "losses": {},
}
ROWS = {"predict": [[0.0]] * 4, "correct": []}
CURVE = {name: [TIMES, [TIMES[0], 0.4, TIMES[-1]]] for name in ("t", "t_c")}
# What Python says of wrong types; nothing of it belongs in a message.
RAW = (
    r"not supported between|unhashable|has no attribute|not iterable|could not convert|Error\(|must be real|invalid lit"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "schedule.json"


def refused(path, record):
    """The message with which a record is refused."""
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        load(path)
    assert not re.search(RAW, str(caught.value))
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_is_damaged_here_was_sound(path):
    for more in ({}, {"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS}}, {"version": 5, "curve": CURVE}):
        path.write_text(json.dumps(RECORD | more))
        assert load(path).solver.nfe == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something else"}, "not a schedule"),
        ({"version": 8}, r"schedule of version 8, this program reads \[1, 2, 3, 4, 5, 6, 7\]"),
        ({"version": 7, "last_sigma": 0.0}, "t_start must be the time at which it starts, got None"),
        ({"version": 7, "last_sigma": 0.0, "t_start": "half"}, "t_start must be the time .* got 'half'"),
        ({"version": 6}, r"lacks \['last_sigma'\]"),
        ({"version": 4}, r"lacks \['last_sigma'\]"),
        ({"version": 4, "last_sigma": 0.002}, "last_sigma must be None or 0, got 0.002"),
        ({"version": 2}, "lacks coefficients or a curve"),
        ({"version": 2, "coefficients": [1.0]}, r"coefficients must be the lists of .*'base', 'predict', 'correct'"),
        ({"version": 2, "coefficients": {"base": [0.0] * 4}}, "coefficients must be the lists of"),
        ({"version": 2, "coefficients": {"base": [0.0] * 3, **ROWS}}, "must be finite and have 4 rows"),
        ({"version": 2, "coefficients": {"base": [float("inf")] * 4, **ROWS}}, "must be finite and have 4 rows"),
        ({"version": 2, "coefficients": {"base": [1e300] * 4, **ROWS}}, "must be finite and have 4 rows"),
        ({"version": 5, "curve": CURVE | {"t": []}}, "a curve has lists t and t_c .* wrong here: .'t', 't_c'"),
        ({"version": 5, "curve": CURVE | {"t": [TIMES, TIMES[::-1]]}}, "descending from .* wrong here: .'t'"),
        ({"version": 5, "curve": CURVE | {"t_c": [TIMES]}}, "a curve has lists t and t_c .* wrong here: .'t_c'"),
        ({"version": 5}, "a curve has lists t and t_c"),
        ({"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS, "predict": 0.0}}, "must be finite and have 4 rows"),
        (
            {"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS, "correct": [0.0] * 4}},
            "must be finite and have 4",
        ),
        ({"t_c": None}, r"lacks \['t_c'\]"),
        ({"solver": None, "losses": None}, r"lacks \['solver', 'losses'\]"),
        ({"t": [1.0, 0.5, 0.001]}, "3 times, 5 network times and 5 lam for 4 steps"),
        ({"t": [1.0, 0.5, 0.7, 0.2, 0.001]}, r"t must descend, got \[1.0, 0.5, 0.69"),
        ({"t": [1.0, 0.5, 0.5, 0.2, 0.001]}, "t must descend"),
        ({"t": [1.0, 0.5, 0.5 - 1e-12, 0.2, 0.001]}, "t must descend, got .* in float32"),
        ({"t": [1.0, 0.5, float("nan"), 0.2, 0.001]}, "finite"),
        ({"t_c": [1.0, 0.5, float("nan"), 0.2, 0.001]}, "finite"),
        ({"lam": [float("-inf"), 0.0, 1.0, 2.0, 3.0]}, "finite"),
        ({"order": 7}, "orders"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"t": [1.0, 0.5, "0.3", 0.2, 0.001]}, "t must be a list of finite numbers"),
        ({"t": 5.0}, "t must be a list of finite numbers"),
        ({"losses": {"loss": ["l2"]}}, r"losses must have the name of a loss as their loss, got \['l2'\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_schedule_is_refused_by_name(change, message, path):
    assert re.search(message, refused(path, RECORD | change))


@pytest.mark.parametrize(
    "damage", [[TIMES, [0.0]], [TIMES, [TIMES[0], float("nan"), TIMES[-1]]], [TIMES, [2.0, 0.001]]]
)
@pytest.mark.parametrize("name", ["t", "t_c"])
def test_a_damaged_curve_is_refused(damage, name, path):
    message = refused(path, RECORD | {"version": 5, "curve": CURVE | {name: [TIMES, damage]}})
    assert message.startswith("a curve has")
    assert f"'{name}'" in message


OF_OTHER_TYPES = [[], {}, "x", True, 1.5, -1, 10**400, [["a"]], [{}], {"a": 1}, [True] * 5, [[1.0], [1.0, 2.0]]]


@pytest.mark.parametrize("field", [field for field in RECORD if field != "format"])
def test_a_field_of_another_type_is_named(field, path):
    for value in OF_OTHER_TYPES:
        if type(value) not in (dict, bool) or type(value) is not type(RECORD[field]):
            assert re.search(rf"\b{field}", refused(path, RECORD | {field: value})), value


@pytest.mark.parametrize("field", ["base", "predict", "correct"])
def test_coefficients_of_another_type_are_named(field, path):
    for value in OF_OTHER_TYPES:
        if (field, value) != ("correct", []):
            message = refused(path, RECORD | {"version": 2, "coefficients": {"base": [0.0] * 4, **ROWS, field: value}})
            assert "coefficients" in message, value


@pytest.mark.parametrize("field", CURVE)
def test_a_part_of_a_curve_of_another_type_is_named(field, path):
    for value in OF_OTHER_TYPES:
        assert f"'{field}'" in refused(path, RECORD | {"version": 5, "curve": CURVE | {field: value}}), value


@pytest.mark.parametrize("value", OF_OTHER_TYPES, ids=lambda value: repr(value)[:12])
def test_coefficients_or_a_curve_that_are_no_records_are_named(value, path):
    assert "coefficients" in refused(path, RECORD | {"version": 2, "coefficients": value})
    assert "curve" in refused(path, RECORD | {"version": 5, "curve": value})


@pytest.mark.parametrize("content", ["", "[1, 2]", "3", '{"solver": "unipc"}', "{", "1" * 5000, "[" * 100000, "\xff"])
def test_what_is_no_schedule_is_refused_by_name(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"other\.json: not"):
        load(path)


def test_a_schedule_cut_short_anywhere_is_refused_by_name(path):
    content = (GOLDEN / "schedule_v2_corrector.json").read_text().rstrip()
    for length in range(0, len(content), 17):
        path.write_text(content[:length])
        with pytest.raises(ValueError, match=r"schedule\.json: not valid JSON, perhaps cut short"):
            load(path)


def test_a_missing_schedule_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"schedule\.json"):
        load(path)
