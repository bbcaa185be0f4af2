"""The times that a student runs on, the network's own times, and changes of the solver's coefficients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.grids import grid
from ld3_jax.ranges import entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Expansion, Solver, Table, converted, expand, make_table
from ld3_jax.solvers.expansion import by_call
from ld3_jax.solvers.solver import joined, of_part


class Coefficients(NamedTuple):
    """Changes of a table, relative to the table: zeros change nothing. They reach `k` predictions back.

    If parts of a state have their own coefficients, the arrays have a last axis of parts.
    """

    base: Float[Array, "nfe *parts"] | tuple[()]  # () on a manifold, where a base has no factor
    predict: Float[Array, "nfe k *parts"]
    correct: Float[Array, "nfe k *parts"] | tuple[()] = ()  # () if the solver has no corrector


class Discretization(NamedTuple):
    """What the learned numbers stand for, with any parametrisation.

    If parts of a state have their own times, t and t_c have a last axis of parts.
    """

    t: Float[Array, "n_points *parts"]  # descending from t_max to t_min
    t_c: Float[Array, "n_points *parts"]  # times given to the network
    coefficients: Coefficients | None = None

    def table(self, schedule: NoiseSchedule, solver: Solver) -> Table:
        """The solver's table on these times, with the changes of its coefficients."""
        if self.coefficients is None:
            return make_table(schedule, self.t, self.t_c, solver=solver)
        return joined(schedule, [self.of_part(i)._changed_table(part, solver) for i, part in enumerate(schedule.parts)])

    def lam(self, schedule: NoiseSchedule) -> Float[Array, "n_points *parts"]:
        """Half the log-SNR at the times, each part's own."""
        if self.t.ndim == 1:
            return schedule.lam(self.t)
        return jnp.stack([part.lam(self.t[:, i]) for i, part in enumerate(schedule.parts)], -1)

    def of_part(self, i: int) -> "Discretization":
        """The times and coefficients of one part of the states."""
        t, t_c = of_part((self.t, self.t_c), i)
        change = self.coefficients
        if change is not None and change.predict.ndim > 2:
            change = jax.tree.map(lambda leaf: leaf[..., i], change)
        return Discretization(t, t_c, change)

    def _changed_table(self, schedule: NoiseSchedule, solver: Solver) -> Table:
        table = make_table(schedule, self.t, self.t_c, solver=solver)
        return table if self.coefficients is None else changed(table, self.coefficients)


@entrance(solver=instance(Solver))
def on_grid(name: str, schedule: NoiseSchedule, solver: Solver) -> Discretization:
    """A standard grid for a solver; see `grids.grid`."""
    t = grid(name, schedule, solver.n_steps)
    return Discretization(t, t)


def like_another(other: Solver, t: Float[Array, "n_points"], schedule: NoiseSchedule, solver: Solver) -> Discretization:
    """Another solver on these times, as changes of this solver's coefficients.

    With all coefficients free, a solver with one call a step can be any other: both make each state a sum of the
    initial state and past predictions.

    Args:
        other: the solver to imitate, with as many network calls and the same end.
        t: the times.
        schedule: the noise schedule.
        solver: the solver whose coefficients are changed; it has one call a step.
    """
    return like_expansion(expand(make_table(schedule, t, solver=other)), other.takes(schedule), t, t, schedule, solver)


def like_expansion(
    target: Expansion,
    given: str,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    schedule: NoiseSchedule,
    solver: Solver,
) -> Discretization:
    """A solver that is written out, as changes of another solver's coefficients.

    Args:
        target: its states, with the same end as the solver's.
        given: the prediction it takes, "noise" or "data".
        t: the times on which the coefficients are changed.
        t_c: the network's times, the same as the target's.
        schedule: the noise schedule.
        solver: the solver whose coefficients are changed; it has one call a step.
    """
    target = converted(target, schedule, given, solver.takes(schedule))
    change = _changes_to(make_table(schedule, t, t_c, solver=solver), target)
    if solver.to_zero:  # both end in the data prediction, and the base may have no factor to change there
        change = jax.tree.map(lambda leaf: leaf.at[-1].set(0.0), change)
    return Discretization(t, t_c, change if solver.expands(schedule) else change._replace(base=()))


def no_change(table: Table, k: int | None = None, *, base: bool = True) -> Coefficients:
    """Coefficients that leave a table as it is.

    Args:
        table: the table, or its shapes.
        k: how many predictions they reach back; by default all of them.
        base: whether they include the factors of the base.
    """
    nfe = len(table.t)
    k = nfe if k is None else k
    correct = jnp.zeros((nfe, k)) if table.correct_history.size else ()
    return Coefficients(jnp.zeros(nfe) if base else (), jnp.zeros((nfe, k)), correct)


def changed(table: Table, change: Coefficients) -> Table:
    """A table with learned changes of its coefficients.

    With w the sum of a row's weights,
        predict_base    <- (1 + base) predict_base
        predict_history <- predict_history + w predict, and so correct_history.
    Changes of predictions before the first one have no effect.

    Args:
        table: a solver's table.
        change: the learned change.

    Raises:
        ValueError: if the change is for another number of network calls, or for a corrector where there is none.

    Reference: arXiv:2502.17423 (S4S: multistep coefficients); arXiv:2403.01329 (BNS: all of a solver's coefficients).
    """
    if len(change.predict) != len(table.t):
        raise ValueError(f"coefficients for {len(change.predict)} network calls on a table of {len(table.t)}")
    k = max(change.predict.shape[1], table.predict_history.shape[1])
    correct = table.correct_history
    if bool(correct.size) != bool(getattr(change.correct, "size", 0)):
        raise ValueError("coefficients must have 'correct' where the solver has a corrector, and nowhere else")
    if correct.size:
        correct = _add_weights(correct, jnp.asarray(change.correct).reshape(len(correct), -1), k)
    return table._replace(
        correct_history=correct,
        predict_base=table.predict_base * (1 + jnp.asarray(change.base)) if len(change.base) else table.predict_base,
        predict_history=_add_weights(table.predict_history, change.predict, k),
    )


def consistent(change: Coefficients) -> Coefficients:
    """The nearest change under which constants still integrate exactly: each row's weights keep their sum."""
    predict, correct = jax.tree.map(_without_mean, (change.predict, change.correct))
    return Coefficients(jax.tree.map(jnp.zeros_like, change.base), predict, correct)


def effective(change: Coefficients) -> Coefficients:
    """Which of the changes have an effect, as booleans: changes of predictions before the first one have none."""
    return jax.tree.map(lambda leaf: np.ones(len(leaf), bool) if leaf.ndim == 1 else _there(*leaf.shape) > 0, change)


def _changes_to(table: Table, target: Expansion) -> Coefficients:
    """The changes that give a table the states of the target.

    Row by row, x' = (1 + base) predict_base b + history, where the base b is known: its own coefficients do not change.
    """
    nfe = len(table.t)
    states = jnp.concatenate([target.initial[:, None], target.history], 1)
    corrections = jnp.pad(by_call(_widen(table.correct_history, nfe)), ((0, 0), (1, 0)))

    def base(last: Array, row: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        correct_x, correct_base, correction, state = row
        new = correct_x * state + correct_base * last + correction
        return new, new

    first = jnp.eye(1, nfe + 1, dtype=states.dtype)[0]
    _, bases = jax.lax.scan(base, first, (table.correct_x, table.correct_base, corrections, states[:-1]))
    factor = states[1:, 0] / bases[:, 0]
    history = by_call(states[1:, 1:] - factor[:, None] * bases[:, 1:])
    total = table.predict_history.sum(-1, keepdims=True)
    change = (history - _widen(table.predict_history, nfe)) / total * _there(nfe, nfe)
    return no_change(table)._replace(base=factor / table.predict_base - 1, predict=change)


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
