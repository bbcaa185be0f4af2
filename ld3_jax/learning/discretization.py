"""What a student runs with: times, the network's own times, and changes of the solver's coefficients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.grids import grid
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table, make_table


class Coefficients(NamedTuple):
    """Changes of a table, relative to it: zeros change nothing. They reach `k` predictions back."""

    base: Float[Array, "nfe"]
    predict: Float[Array, "nfe k"]
    correct: Float[Array, "nfe k"] | tuple[()] = ()  # () where the solver has no corrector


class Discretization(NamedTuple):
    """What the learned numbers stand for, whatever the parametrisation."""

    t: Float[Array, "n_points"]  # descending from t_max to t_min
    t_c: Float[Array, "n_points"]  # times given to the network
    coefficients: Coefficients | None = None

    def table(self, schedule: NoiseSchedule, solver: Solver) -> Table:
        """The solver's table on these times, with the changes of its coefficients."""
        table = make_table(schedule, self.t, self.t_c, solver=solver)
        return table if self.coefficients is None else changed(table, self.coefficients)


def on_grid(name: str, schedule: NoiseSchedule, solver: Solver) -> Discretization:
    """A hand-made grid for a solver; see `grids.grid`."""
    t = grid(name, schedule, solver.n_steps)
    return Discretization(t, t)


def no_change(table: Table, k: int | None = None) -> Coefficients:
    """Coefficients that leave a table as it is.

    Args:
        table: the table, or its shapes.
        k: how many predictions they reach back; default all of them.
    """
    nfe = len(table.t)
    k = nfe if k is None else k
    correct = jnp.zeros((nfe, k)) if table.correct_history.size else ()
    return Coefficients(jnp.zeros(nfe), jnp.zeros((nfe, k)), correct)


def changed(table: Table, change: Coefficients) -> Table:
    """A table with learned changes of its coefficients.

    With w the sum of a row's weights,
        predict_base    <- (1 + base) predict_base
        predict_history <- predict_history + w predict, and so correct_history.
    Changes of predictions before the first one have no effect.

    Args:
        table: a solver's table.
        change: what was learned for it.

    Raises:
        ValueError: if the change is for another number of network calls.

    Reference: arXiv:2502.17423 (S4S: multistep coefficients); arXiv:2403.01329 (BNS: all of a solver's coefficients).
    """
    if len(change.base) != len(table.t):
        raise ValueError(f"coefficients for {len(change.base)} network calls on a table of {len(table.t)}")
    k = max(change.predict.shape[1], table.predict_history.shape[1])
    correct = table.correct_history
    if correct.size:
        correct = _add_weights(correct, jnp.asarray(change.correct).reshape(len(correct), -1), k)
    return table._replace(
        correct_history=correct,
        predict_base=table.predict_base * (1 + change.base),
        predict_history=_add_weights(table.predict_history, change.predict, k),
    )


def consistent(change: Coefficients) -> Coefficients:
    """The nearest change under which constants still integrate exactly: each row's weights keep their sum."""
    predict, correct = jax.tree.map(_without_mean, (change.predict, change.correct))
    return Coefficients(jnp.zeros_like(change.base), predict, correct)


def effective(change: Coefficients) -> Coefficients:
    """Which of the changes have an effect, as booleans: not those of predictions before the first one."""
    return jax.tree.map(lambda leaf: np.ones(len(leaf), bool) if leaf.ndim == 1 else _there(*leaf.shape) > 0, change)


def _add_weights(history: Array, change: Array, k: int) -> Array:
    """History weights, k columns of them, with a change relative to their sum."""
    total = history.sum(-1, keepdims=True)
    return _widen(history, k) + total * _widen(change, k) * _there(history.shape[0], k)


def _widen(columns: Array, k: int) -> Array:
    return jnp.pad(columns, ((0, 0), (0, k - columns.shape[1])))


def _there(nfe: int, k: int) -> np.ndarray:
    """Which of the last k predictions exist at each row."""
    return np.tril(np.ones((nfe, k), np.float32))


def _without_mean(change: Array) -> Array:
    there = _there(*change.shape)
    return (change - (change * there).sum(-1, keepdims=True) / there.sum(-1, keepdims=True)) * there
