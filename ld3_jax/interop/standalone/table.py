"""A solver as a table of plain numbers, and the loop that runs it, for arrays of any library.

What is multiplied and added may be tensors of PyTorch, arrays of NumPy, MLX or JAX: coefficients are Python's floats.
"""

import functools
import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# With x = alpha x_0 + sigma eps, a network's output is a x_0 + b eps: (a, b) by alpha and sigma.
OUTPUTS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "data": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
    "reversed_flow": lambda alpha, sigma: (1.0, -1.0),
}
_STATED = ("prediction", "process", "train_steps", "output", "betas")


class Table(NamedTuple):
    """One row for each network call; with the last predictions, newest first, as history, a row does

        base = correct_x * x + correct_base * base + correct_history . history
        x    = predict_base * base + predict_history . history

    Attributes:
        prediction: what the history holds, "noise" or "data".
        process: "vp" (alpha^2 + sigma^2 = 1), "ve" (alpha = 1), "flow" (alpha + sigma = 1), or None.
        train_steps: N where step i of the network's training has the time (i + 1) / N; else None.
        output: what the network that it was learned for gives, one of OUTPUTS or "score"; None if that is not known.
        betas: arguments of diffusers' schedulers that give these training steps; None if there are none, or not known.
        prior_scale: standard deviation of the first state.
        t, alpha, sigma: the network's times, and the factors of signal and noise there, for each call.
        grid_alpha, grid_sigma: those of the states, at the ends of all steps; one more than there are steps.
    """

    prediction: str
    process: str | None
    train_steps: int | None
    output: str | None
    betas: dict[str, Any] | None
    prior_scale: float
    t: Sequence[float]
    alpha: Sequence[float]
    sigma: Sequence[float]
    grid_alpha: Sequence[float]
    grid_sigma: Sequence[float]
    correct_x: Sequence[float]
    correct_base: Sequence[float]
    correct_history: Sequence[Sequence[float]]
    predict_base: Sequence[float]
    predict_history: Sequence[Sequence[float]]

    @property
    def calls(self) -> int:
        """Network calls in all."""
        return len(self.t)

    @property
    def calls_per_step(self) -> int:
        """Network calls for one step of the grid."""
        return -(-self.calls // (len(self.grid_alpha) - 1))

    @property
    def levels(self) -> list[float]:
        """Noise at the ends of all steps as samplers with one sigma have it: sigma / alpha, of flows sigma."""
        if self.process == "flow":
            return list(self.grid_sigma)
        return [sigma / alpha for alpha, sigma in zip(self.grid_alpha, self.grid_sigma, strict=True)]


class State(NamedTuple):
    """The state, its base, and the last predictions with the newest first."""

    x: Any
    base: Any
    history: tuple[Any, ...] = ()


def read(path: str | Path) -> Table:
    """The table in a schedule.json.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder or no JSON, has no table, or one that does not fit together.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, where a schedule.json is wanted")
    try:
        record = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("table"), dict):
        raise ValueError(f"{path}: has no table of coefficients; save it with its noise schedule")
    try:
        return from_record(record["table"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_record(record: Any) -> Table:
    """A table from what JSON holds of it.

    Raises:
        ValueError: if a column is missing, no list, not finite or of another length.
    """
    if not isinstance(record, dict):
        raise ValueError(f"the table must be an object with its columns, got {record!r:.80}")
    record = {"output": None, "betas": None} | record
    if missing := [name for name in Table._fields if name not in record]:
        raise ValueError(f"the table lacks {missing}")
    table = Table(**{name: record[name] for name in Table._fields})
    if table.prediction not in ("noise", "data"):
        raise ValueError(f"the table's prediction must be 'noise' or 'data', got {table.prediction!r}")
    for name, kind in {"process": str, "train_steps": int, "output": str, "betas": dict}.items():
        given = getattr(table, name)
        if type(given) not in (kind, type(None)) or (kind is int and given is not None and given < 1):
            raise ValueError(f"the table's {name} must be {kind.__name__} or null, got {given!r:.80}")
    columns = [name for name in Table._fields if name not in (*_STATED, "prior_scale")]
    for name in columns:
        column = getattr(table, name)
        if not _is_list(column) or (name.endswith("_history") and not all(map(_is_list, column))):
            raise ValueError(f"the table's {name} must be a list{' of lists' * name.endswith('_history')}")
    rows = [name for name in columns if not name.startswith("grid_")]
    lengths = {name: len(getattr(table, name)) for name in rows}
    steps = len(table.grid_alpha) - 1
    if len(set(lengths.values())) != 1 or len(table.grid_sigma) != steps + 1 or not 0 < steps <= table.calls:
        raise ValueError(f"the table's columns must have one length, got {lengths}, and {steps} steps")
    if not all(map(math.isfinite, _flat([getattr(table, name) for name in ("prior_scale", *columns)]))):
        raise ValueError("the table's numbers must be finite")
    return table


def converted(table: Table, i: int, x: Any, output: Any, kind: str) -> Any:
    """What a network gave at call i as the prediction that the table takes.

    Args:
        table: the table.
        i: the call.
        x: the state there.
        output: what the network gave.
        kind: what it is, one of OUTPUTS.
    """
    if kind == table.prediction:
        return output
    alpha, sigma = table.alpha[i], table.sigma[i]
    a, b = OUTPUTS[kind](alpha, sigma)
    of_x, of_output = (-a, alpha) if table.prediction == "noise" else (b, -sigma)
    determinant = alpha * b - sigma * a
    return _sum([(of_x / determinant, x), (of_output / determinant, output)])


def advanced(table: Table, i: int, state: State, prediction: Any) -> State:
    """What row i makes of a state and the prediction there."""
    history = (prediction, *state.history)[: max(map(len, table.predict_history))]
    kept = [(table.correct_x[i], state.x), (table.correct_base[i], state.base)]
    base = _sum([*kept, *zip(table.correct_history[i], history)])  # noqa: B905  the first calls have less history
    x = _sum([(table.predict_base[i], base), *zip(table.predict_history[i], history)])  # noqa: B905
    return State(x, base, history)


def solve(table: Table, network: Callable[[Any, float], Any], x_T: Any, output: str = "noise") -> Any:
    """Run a table.

    Args:
        table: the table.
        network: network(x, t) at the times that it was learned for.
        x_T: the first state, scaled by `prior_scale`.
        output: what the network gives: "noise", "data", "v" (alpha eps - sigma x_0), "flow" (eps - x_0) or
            "reversed_flow" (x_0 - eps).

    Returns:
        The last state.
    """
    state = State(x_T, x_T)
    for i, t in enumerate(table.t):
        state = advanced(table, i, state, converted(table, i, state.x, network(state.x, t), output))
    return state.x


def _sum(terms: Iterable[tuple[float, Any]]) -> Any:
    return functools.reduce(operator.add, [weight * value for weight, value in terms if weight])


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _flat(values: Any) -> list[Any]:
    if not _is_list(values):
        return [values if isinstance(values, int | float) else math.nan]
    return [leaf for value in values for leaf in _flat(value)]
