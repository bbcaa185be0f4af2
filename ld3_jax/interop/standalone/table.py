"""A solver as a table of plain numbers, and the loop that runs it, for arrays of any library.

States may be PyTorch tensors or arrays of NumPy, MLX or JAX: coefficients are Python floats.
"""

import functools
import itertools
import json
import operator
import sys
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
# What is 1 for alpha and sigma.
_PROCESSES: dict[str | None, Callable[[float, float], float]] = {
    "vp": lambda alpha, sigma: alpha**2 + sigma**2,
    "ve": lambda alpha, sigma: alpha,
    "flow": lambda alpha, sigma: alpha + sigma,
    None: lambda alpha, sigma: 1.0,
}
_CLOSE = 1e-3
_STATED = ("prediction", "process", "train_steps", "output", "betas", "prior_scale", "full_noise")


class Table(NamedTuple):
    """One row for each network call; with the last predictions as history, newest first, a row does

        base = correct_x * x + correct_base * base + correct_history . history
        x    = predict_base * base + predict_history . history

    Attributes:
        prediction: what the history holds, "noise" or "data".
        process: "vp" (alpha^2 + sigma^2 = 1), "ve" (alpha = 1), "flow" (alpha + sigma = 1), or None.
        train_steps: N if step i of the network's training has the time (i + 1) / N; otherwise None.
        output: what the network that it was learned for predicts, one of OUTPUTS or "score"; None if unknown.
        betas: arguments of diffusers' schedulers that give these training steps; None if there are none or they are
            unknown.
        prior_scale: standard deviation of the first state, which is pure noise; None if it starts below full noise.
        t, alpha, sigma: the network's times, and the factors of signal and noise there, for each call.
        grid_alpha, grid_sigma: the factors in the states, at the ends of all steps; one more than there are steps.
        full_noise: if it starts below full noise, from data x_0 with x = grid_alpha[0] x_0 + grid_sigma[0] eps, the
            model's own first level (in the units of `levels`); otherwise None.
    """

    prediction: str
    process: str | None
    train_steps: int | None
    output: str | None
    betas: dict[str, Any] | None
    prior_scale: float | None
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
    full_noise: float | None = None

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
        """Noise at the ends of all steps for samplers with one sigma: sigma / alpha, or sigma for flows."""
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
        ValueError: if it is a folder, is not JSON, has no table, or has one that does not fit together.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder, not a schedule.json")
    try:
        record = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("table"), dict):
        raise ValueError(f"{path}: has no table of coefficients; save it with its noise schedule")
    try:
        return from_record(record["table"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_record(record: Any) -> Table:
    """A table from its JSON record.

    Raises:
        ValueError: if a column is missing, not a list, not finite or of another length, or contradicts another one.
    """
    if not isinstance(record, dict):
        raise ValueError(f"the table must be an object with its columns, got {record!r:.80}")
    record = {"output": None, "betas": None, "full_noise": None} | record
    if missing := [name for name in Table._fields if name not in record]:
        raise ValueError(f"the table lacks {missing}")
    table = Table(**{name: record[name] for name in Table._fields})
    if table.prediction not in ("noise", "data"):
        raise ValueError(f"the table's prediction must be 'noise' or 'data', got {table.prediction!r}")
    for name, known in {"process": _PROCESSES, "output": [*OUTPUTS, "score", None]}.items():
        if getattr(table, name) not in [*known]:
            raise ValueError(
                f"the table's {name} must be one of {[*filter(None, known)]} or null, got {getattr(table, name)!r:.80}"
            )
    if (steps := table.train_steps) is not None and (type(steps) is not int or steps < 1):
        raise ValueError(f"the table's train_steps must be a number of steps or null, got {steps!r:.80}")
    if not isinstance(table.betas, dict | None):
        raise ValueError(f"the table's betas must be an object or null, got {table.betas!r:.80}")
    columns = [name for name in Table._fields if name not in _STATED]
    for name in columns:
        column = getattr(table, name)
        if not _is_list(column) or (name.endswith("_history") and not all(map(_is_list, column))):
            raise ValueError(f"the table's {name} must be a list{' of lists' * name.endswith('_history')}")
    rows = [name for name in columns if not name.startswith("grid_")]
    lengths = {name: len(getattr(table, name)) for name in rows}
    steps = len(table.grid_alpha) - 1
    if len(set(lengths.values())) != 1 or len(table.grid_sigma) != steps + 1 or not 0 < steps <= table.calls:
        raise ValueError(f"the table's columns must have one length, got {lengths}, and {steps} steps")
    numbers = itertools.chain(*(getattr(table, name) for name in columns if "_history" not in name))
    first = [one for one in (table.prior_scale, table.full_noise) if one is not None]
    if len(first) != 1:
        raise ValueError("the table must have a prior_scale, or full_noise where it starts below that, and not both")
    histories = itertools.chain(*table.correct_history, *table.predict_history)
    if not all(map(_is_number, [*numbers, *histories, *first])):
        raise ValueError("the table's numbers must be finite")
    _check_fit(table)
    return table


def _check_fit(table: Table) -> None:
    """Contradictions that an edited file may contain although no number is missing."""
    grid = list(zip(table.grid_alpha, table.grid_sigma, strict=True))
    pairs, one = [*grid, *zip(table.alpha, table.sigma, strict=True)], _PROCESSES[table.process]
    before = (row[i + 1 :] for rows in (table.correct_history, table.predict_history) for i, row in enumerate(rows))
    wrong = {
        f"alpha and sigma do not fit the process {table.process}": any(
            min(pair) < 0 or abs(one(*pair) - 1) > _CLOSE for pair in pairs
        ),
        "the noise of grid_alpha and grid_sigma does not fall": any(
            sigma * next_alpha < next_sigma * alpha
            for (alpha, sigma), (next_alpha, next_sigma) in itertools.pairwise(grid)
        ),
        "the prior_scale is not positive": table.prior_scale is not None and table.prior_scale <= 0,
        "it does not start below full_noise": table.full_noise is not None and table.full_noise <= table.levels[0],
        "a history reaches back to before the first call": any(itertools.chain(*before)),
    }
    if found := [text for text, is_so in wrong.items() if is_so]:
        raise ValueError(f"the table contradicts itself: {found[0]}")


def converted(table: Table, i: int, x: Any, output: Any, kind: str) -> Any:
    """The output of a network at call i as the prediction that the table takes.

    Args:
        table: the table.
        i: the call.
        x: the state there.
        output: the network's output.
        kind: its kind, one of OUTPUTS.
    """
    if kind == table.prediction:
        return output
    alpha, sigma = table.alpha[i], table.sigma[i]
    a, b = OUTPUTS[kind](alpha, sigma)
    of_x, of_output = (-a, alpha) if table.prediction == "noise" else (b, -sigma)
    determinant = alpha * b - sigma * a
    return _sum([(of_x / determinant, x), (of_output / determinant, output)])


def advanced(table: Table, i: int, state: State, prediction: Any) -> State:
    """Row i: the next state from a state and the prediction there."""
    history = (prediction, *state.history)[: max(map(len, table.predict_history))]
    kept = [(table.correct_x[i], state.x), (table.correct_base[i], state.base)]
    base = _sum([*kept, *zip(table.correct_history[i], history)])  # noqa: B905  the first calls have less history
    x = _sum([(table.predict_base[i], base), *zip(table.predict_history[i], history)])  # noqa: B905
    return State(x, base, history)


def solve(table: Table, network: Callable[[Any, float], Any], x_T: Any, output: str = "noise") -> Any:
    """Run a table.

    Args:
        table: the table.
        network: network(x, t), called at the learned times.
        x_T: the first state, scaled by `prior_scale`; or noised data below full noise, see `Table.full_noise`.
        output: what the network predicts: "noise", "data", "v" (alpha eps - sigma x_0), "flow" (eps - x_0) or
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
