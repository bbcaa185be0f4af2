"""A solver as a table of coefficients, and the one scan that runs every table.

Every solver here is linear in the state and in past predictions, with coefficients that depend only on the times.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ld3_jax.denoisers import Model, predicted
from ld3_jax.ranges import ARRAYS, FLAG, FUNCTION, STATES, check, entrance, instance, shown
from ld3_jax.space import add


class Table(NamedTuple):
    """One row per network call; `k` is the number of predictions remembered, newest first.

    With `history` the last k predictions, including this row's, a row does
        base = correct_x * x + correct_base * base + correct_history . history
        x    = predict_base * base + predict_history . history
    The base is the current estimate of the state at the last grid point; a corrector improves it, a second stage keeps
    it. `correct_history` may have no columns, if the family has no corrector.

    A column may also be a pytree that is a prefix of the states, with an array for each of their parts: then each part
    has its own coefficients, and the model gets a pytree of times.
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


@entrance(model=FUNCTION, table=instance(Table), cond=ARRAYS, remat=FLAG, retract=FUNCTION)
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
        table: coefficients, from `make_table` or your own.
        x_T: state at t_max, scaled by the prior; an array or any pytree of arrays. The states have the table's dtype if
            it is wider.
        cond: passed to the model.
        remat: recompute the network's activations in the backward pass, so that memory holds only the states.
        retract: how an update moves a base: retract(base, update) -> state. The default adds. On a manifold, base is a
            point, update a tangent vector, and the table's factors of the base must be 1, as in noise-predicting
            families on schedules with alpha = 1.
        update_like: arrays shaped like the model's prediction, if it is not shaped like x_T (tangent vectors).

    Returns:
        The state at t_min, shaped like x_T.

    Raises:
        ValueError: if the table's columns do not fit together, states are not real floating-point numbers, or the model
            cannot be called like this or its prediction is not shaped like x_T.
    """
    _check(table)

    def step(state: State, row: Table) -> tuple[State, None]:
        return _called(model, state, row, cond, retract), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)
    final, _ = jax.lax.scan(step, begun(table, x_T, update_like), table)
    return final.x


@entrance(model=FUNCTION, table=instance(Table), cond=ARRAYS, retract=FUNCTION)
def states(
    model: Model,
    table: Table,
    x_T: PyTree[Float[Array, "..."]],
    *,
    cond: PyTree = None,
    retract: Callable[[PyTree, PyTree], PyTree] = add,
    update_like: PyTree | None = None,
) -> PyTree[Float[Array, "..."]]:
    """The states on the way: the initial one, and the one after each network call. The last one is that of `solve`.

    Args and Raises: see `solve`.

    Returns:
        (nfe + 1, *shape of x_T); a pytree of such arrays where x_T is one.
    """
    _check(table)

    def step(state: State, row: Table) -> tuple[State, PyTree]:
        state = _called(model, state, row, cond, retract)
        return state, state.x

    first = begun(table, x_T, update_like)
    _, later = jax.lax.scan(step, first, table)
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first.x, later)


def begun(table: Table, x_T: PyTree, update_like: PyTree | None = None) -> State:
    """The state before the first row."""
    check({"x_T": x_T, "table": table}, {"x_T": STATES, "table": STATES})
    remembered = jax.tree.leaves(table.predict_history)[0].shape[1]
    update_like, dtype = x_T if update_like is None else update_like, jax.tree.leaves(table.t)[0]
    x_T, like = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, dtype)), (x_T, update_like))
    history = jax.tree.map(lambda leaf: jnp.zeros((remembered, *leaf.shape), leaf.dtype), like)
    return State(x_T, x_T, history)


def advanced(state: State, row: Table, prediction: PyTree, retract: Callable[[PyTree, PyTree], PyTree] = add) -> State:
    """One row: the next state from a state and the prediction there; `retract` as in `solve`."""
    history = jax.tree.map(_push, state.history, prediction)
    kept, held = _by_part(jnp.multiply, row.correct_x, state.x), _by_part(jnp.multiply, row.correct_base, state.base)
    base = add(kept, held)
    if any(columns.size for columns in jax.tree.leaves(row.correct_history)):
        base = retract(base, _by_part(_weighted, row.correct_history, history))
    x = retract(_by_part(jnp.multiply, row.predict_base, base), _by_part(_weighted, row.predict_history, history))
    return State(x, base, history)


def _called(model: Model, state: State, row: Table, cond: PyTree, retract: Callable[[PyTree, PyTree], PyTree]) -> State:
    """The state after a row's network call."""
    like = jax.tree.map(lambda past: past[0], state.history)
    return advanced(state, row, predicted(model, state.x, row.t, cond, like), retract)


def _check(table: Table) -> None:
    columns = [jax.tree.leaves(column) for column in table]
    nfe, k = len(columns[0][0]), columns[-1][0].shape[-1]
    allowed = [[(nfe,)]] * 3 + [[(nfe, 0), (nfe, k)], [(nfe,)], [(nfe, k)]]
    if any(leaf.shape not in shapes for leaves, shapes in zip(columns, allowed, strict=True) for leaf in leaves):
        raise ValueError(
            "a table has a row for each network call, columns (nfe,), predict_history (nfe, k) and correct_history "
            f"(nfe, k) or (nfe, 0); got {shown(table)}"
        )


def _by_part(function: Callable[[Any, Any], Any], factors: PyTree, state: PyTree) -> PyTree:
    """function(factor, leaf) for each leaf of a state, with its part's factor."""
    return jax.tree.map(lambda factor, part: jax.tree.map(partial(function, factor), part), factors, state)


def _push(history: Array, newest: Array) -> Array:
    return jnp.concatenate([newest[None], history[:-1]])


def _weighted(weights: Array, past: Array) -> Array:
    return jnp.tensordot(weights, past, axes=1, precision=jax.lax.Precision.HIGHEST)
