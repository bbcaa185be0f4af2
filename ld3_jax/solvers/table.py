"""A solver as a table of coefficients, and the one scan that runs every table.

Every solver here is linear in the state and in past predictions, with coefficients that depend on the times alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ld3_jax.denoisers import Model, check_output


class Table(NamedTuple):
    """One row per network call; `k` is the number of predictions remembered, newest first.

    With `history` the last k predictions including this row's, a row does
        base = correct_x * x + correct_base * base + correct_history . history
        x    = predict_base * base + predict_history . history
    The base is the state at the last grid point as known so far; a corrector improves it, a second stage keeps it.
    `correct_history` may have no columns, where the family corrects nothing.
    """

    t: Float[Array, "nfe"]
    correct_x: Float[Array, "nfe"]
    correct_base: Float[Array, "nfe"]
    correct_history: Float[Array, "nfe _"]
    predict_base: Float[Array, "nfe"]
    predict_history: Float[Array, "nfe k"]


class State(NamedTuple):
    """What the scan carries: the state, its base, and the last k predictions with the newest first."""

    x: PyTree[Array]
    base: PyTree[Array]
    history: PyTree[Array]


def explicit(
    t: Float[Array, "nfe"], predict_base: Float[Array, "nfe"], predict_history: Float[Array, "nfe k"]
) -> Table:
    """A table without corrector: the base is the state itself."""
    one, nothing = jnp.ones_like(t), jnp.zeros((len(t), 0), t.dtype)
    return Table(t, one, jnp.zeros_like(t), nothing, predict_base, predict_history)


def add(base: PyTree[Array], update: PyTree[Array]) -> PyTree[Array]:
    """The sum of two pytrees, leaf by leaf: how an update moves a base in a vector space."""
    return jax.tree.map(jnp.add, base, update)


def solve(
    model: Model,
    table: Table,
    x_T: PyTree[Float[Array, "..."]],
    *,
    cond: PyTree = None,
    remat: bool = True,
    retract: Callable[[PyTree, PyTree], PyTree] = add,
    update_like: PyTree | None = None,
) -> PyTree[Float[Array, "..."]]:
    """Integrate with a given table.

    Args:
        model: model(x, t, cond) -> the prediction that the table is for (noise or data).
        table: coefficients, from `make_table` or of your own.
        x_T: state at t_max, scaled by the prior; an array or any pytree of arrays. The states have the table's dtype if
            that is the wider one.
        cond: passed to the model.
        remat: recompute the network's activations in the backward pass, so that memory holds only the states.
        retract: how an update moves a base: retract(base, update) -> state. The default adds. On a manifold, base is a
            point, update a tangent vector, and the table's factors of the base must be 1, as in noise-predicting
            families on schedules with alpha = 1.
        update_like: arrays shaped like the model's prediction, where they are not shaped like x_T (tangent vectors).

    Returns:
        The state at t_min, shaped like x_T.

    Raises:
        ValueError: if the table's columns do not fit together, or the model's prediction is not shaped like x_T.
    """
    _check(table)

    def step(state: State, row: Table) -> tuple[State, None]:
        prediction = model(state.x, row.t, cond)
        check_output(prediction, jax.tree.map(lambda past: past[0], state.history))
        return advanced(state, row, prediction, retract), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)
    final, _ = jax.lax.scan(step, begun(table, x_T, update_like), table)
    return final.x


def begun(table: Table, x_T: PyTree, update_like: PyTree | None = None) -> State:
    """The state before the first row."""
    remembered = table.predict_history.shape[1]
    update_like = x_T if update_like is None else update_like
    x_T, like = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, table.t)), (x_T, update_like))
    history = jax.tree.map(lambda leaf: jnp.zeros((remembered, *leaf.shape), leaf.dtype), like)
    return State(x_T, x_T, history)


def advanced(state: State, row: Table, prediction: PyTree, retract: Callable[[PyTree, PyTree], PyTree]) -> State:
    """What a row makes of a state and the prediction there."""
    history = jax.tree.map(_push, state.history, prediction)
    base = jax.tree.map(lambda x, base: row.correct_x * x + row.correct_base * base, state.x, state.base)
    if row.correct_history.size:
        base = retract(base, _weighted(row.correct_history, history))
    x = retract(jax.tree.map(lambda base: row.predict_base * base, base), _weighted(row.predict_history, history))
    return State(x, base, history)


def _check(table: Table) -> None:
    nfe, k = len(table.t), table.predict_history.shape[-1]
    try:
        chex.assert_shape(list(table), [(nfe,), (nfe,), (nfe,), (nfe, {0, k}), (nfe,), (nfe, k)])
    except AssertionError as error:
        shapes = ", ".join(f"{name} {jnp.shape(column)}" for name, column in table._asdict().items())
        raise ValueError(
            "a table has a row for each network call, columns (nfe,), predict_history (nfe, k) and correct_history "
            f"(nfe, k) or (nfe, 0); got {shapes}"
        ) from error


def _push(history: Array, newest: Array) -> Array:
    return jnp.concatenate([newest[None], history[:-1]])


def _weighted(weights: Array, history: PyTree) -> PyTree:
    return jax.tree.map(lambda past: jnp.tensordot(weights, past, axes=1, precision=jax.lax.Precision.HIGHEST), history)
