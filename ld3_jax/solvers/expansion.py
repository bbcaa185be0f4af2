"""A solver written out, from any table: each state as a sum of the initial state and past predictions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.table import State, Table, advanced, begun, explicit
from ld3_jax.space import add


class Expansion(NamedTuple):
    """x_i = initial_i x_T + sum_{j < i} history_ij P_j, with P_j the prediction at call j, at time t_j, from x_j.

    Row i is the state at call i; the last row is the sample.
    """

    t: Float[Array, "nfe"]
    initial: Float[Array, "nfe+1"]
    history: Float[Array, "nfe+1 nfe"]


def expand(table: Table) -> Expansion:
    """Write a table out: correctors and stages become factors of a strictly lower triangular matrix."""
    units = jnp.eye(1 + len(table.t), dtype=table.t.dtype)  # x_T, then each prediction

    def step(state: State, inputs: tuple[Table, Array]) -> tuple[State, Array]:
        row, prediction = inputs
        return advanced(state, row, prediction, add), state.x

    final, states = jax.lax.scan(step, begun(table, units[0]), (table, units[1:]))
    states = jnp.concatenate([states, final.x[None]])
    return Expansion(table.t, states[:, 0], states[:, 1:])


def converted(expansion: Expansion, schedule: NoiseSchedule, given: str, wanted: str) -> Expansion:
    """The same solver for another prediction: noise-predicting solvers take data, and data-predicting ones noise.

    P = (x - b Q) / a with (a, b) = (alpha, sigma) for P data and Q noise, and the other way round, at the time of the
    call. So the states solve (I - H / a) x = initial x_T - (H b / a) Q.

    Args:
        expansion: the solver.
        schedule: its noise schedule.
        given: the prediction it takes, "noise" or "data".
        wanted: the prediction it should take.
    """
    if given == wanted:
        return expansion
    t, initial, history = expansion
    a, b = schedule.alpha(t), schedule.sigma(t)
    if given == "noise":
        a, b = b, a
    rows = jnp.concatenate([initial[:, None], -history * (b / a)[None]], 1)
    matrix = jnp.eye(len(initial), dtype=t.dtype) - jnp.pad(history / a[None], ((0, 0), (0, 1)))
    states = jax.scipy.linalg.solve_triangular(matrix, rows, lower=True, unit_diagonal=True)
    return Expansion(t, states[:, 0], states[:, 1:])


def as_updates(expansion: Expansion) -> Table:
    """The same solver as updates of the last call's state; the initial one must have the factor 1 in every state.

    x_{i+1} = x_i + sum_j (history_{i+1,j} - history_{i,j}) P_j: the only factor of a state is 1, as a manifold
    requires.
    """
    return explicit(expansion.t, jnp.ones_like(expansion.t), by_call(jnp.diff(expansion.history, axis=0)))


def by_call(history: Float[Array, "rows k"]) -> Float[Array, "rows k"]:
    """Columns newest first as columns oldest first, or the other way round."""
    rows, columns = np.indices(history.shape)
    return jnp.where(columns <= rows, history[rows, np.maximum(rows - columns, 0)], 0.0)
