"""How a solver's samples change with the learned numbers: Jacobians that do no work on zeros.

In a vector space, a state is a sum of the initial state and past predictions (`solvers.Expansion`). A change of one of
its factors shows in that state first, so the tangent is zero before the call there. At each call the network is
linearised once, and only the directions that have begun pass through it. On a manifold states are not sums, and the
Jacobian is that of the whole solver.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ld3_jax.denoisers import Model, predicted
from ld3_jax.solvers import Expansion


class Directions(NamedTuple):
    """Changes of an expansion, in the order in which they begin.

    Attributes:
        first: the call at which each of q directions begins, ascending; nfe for directions that only change the sample.
        change: the directions themselves, with a leading axis of q.
    """

    first: Int[np.ndarray, "q"]
    change: Expansion


def every_factor(nfe: int) -> Directions:
    """A direction for each factor of each state, and for each time after the first one."""
    where = [(i, j) for i in range(1, nfe + 1) for j in range(-1, i)] + [(i, nfe) for i in range(1, nfe)]
    first, factor = np.array(sorted(where)).T  # -1: of x_T; nfe: the time
    at = first[:, None] == np.arange(nfe + 1)
    change = Expansion(
        t=at[:, :nfe] & (factor[:, None] == nfe),
        initial=at & (factor[:, None] == -1),
        history=at[:, :, None] & (factor[:, None] == np.arange(nfe))[:, None],
    )
    return Directions(first, jax.tree.map(lambda part: part.astype(np.float32), change))


def sample_and_jacobian(
    model: Model, expansion: Expansion, directions: Directions, x_T: PyTree, cond: PyTree, *, at_a_time: int
) -> tuple[PyTree, PyTree]:
    """A batch of samples, and how they change along each direction.

    Args:
        model: model(x, t, cond) -> the prediction that the expansion is for.
        expansion: the solver.
        directions: q directions.
        x_T: a batch of initial states, scaled by the prior.
        cond: their conditions.
        at_a_time: how many directions pass through the network together.

    Returns:
        The samples, and their q derivatives, with a leading axis.
    """
    nfe, q = len(expansion.t), len(directions.first)
    size = min(at_a_time, q)
    padded = -(-q // size) * size
    chunks = -(-np.searchsorted(directions.first, np.arange(nfe), "right") // size)
    change = jax.tree.map(
        lambda part: jnp.pad(jnp.asarray(part, expansion.t.dtype), [(0, padded - q), *[(0, 0)] * (part.ndim - 1)]),
        directions.change,
    )
    some = partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
    x_T = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, expansion.t)), x_T)

    def state(factors: tuple[Array, Array], past: PyTree) -> PyTree:
        """initial x_T + history . past, for factors with or without an axis of directions."""
        initial, history = factors
        return jax.tree.map(
            lambda x, p: jnp.multiply.outer(initial, x) + jnp.tensordot(history, p, 1, precision="highest"), x_T, past
        )

    def tangent(row: tuple[Array, Array], own: tuple[Array, Array], past: PyTree, moved: PyTree) -> PyTree:
        """The change of a state, through its own factors and through the predictions in its sum."""
        inherited = jax.tree.map(lambda m: jnp.tensordot(row[1], m, 1, precision="highest"), moved)
        return jax.tree.map(jnp.add, state(own, past), inherited)

    def call(carry: tuple[PyTree, PyTree], i: Array) -> tuple[tuple[PyTree, PyTree], None]:
        past, moved = carry
        row = (expansion.initial[i], expansion.history[i])
        prediction, linear = jax.linearize(
            lambda x, t: predicted(model, x, t, cond, x), state(row, past), expansion.t[i]
        )

        def chunk(c: Array, moved: PyTree) -> PyTree:
            t, *own = (some(part[:, i], c * size) for part in change)
            so_far = jax.tree.map(lambda m: some(m, c * size, axis=1), moved)
            new = jax.vmap(linear)(tangent(row, (own[0], own[1]), past, so_far), t)
            return jax.tree.map(
                lambda m, d: jax.lax.dynamic_update_slice(m, d[None], (i, c * size, *[0] * (d.ndim - 1))), moved, new
            )

        moved = jax.lax.fori_loop(0, jnp.asarray(chunks)[i], chunk, moved)
        return (jax.tree.map(lambda p, new: p.at[i].set(new), past, prediction), moved), None

    past, moved = (
        jax.tree.map(lambda x, axes=axes: jnp.zeros((*axes, *x.shape), x.dtype), x_T)
        for axes in ((nfe,), (nfe, padded))
    )
    (past, moved), _ = jax.lax.scan(call, (past, moved), jnp.arange(nfe))
    row, own = (expansion.initial[nfe], expansion.history[nfe]), (change.initial[:q, nfe], change.history[:q, nfe])
    return state(row, past), tangent(row, own, past, jax.tree.map(lambda m: m[:, :q], moved))


def sample_and_jacobian_of_each(
    sample: Callable[[Array, PyTree, PyTree], PyTree],
    numbers: Float[Array, "p"],
    directions: Float[Array, "q p"],
    x_T: PyTree,
    cond: PyTree,
) -> tuple[PyTree, PyTree]:
    """A batch of samples, and how they change along directions of the numbers, through the whole solver.

    It assumes nothing about the states, which may lie on a manifold. A pose has fewer numbers than a solver, so its
    Jacobian is taken in reverse mode, row by row: `passes` of them.

    Args:
        sample: sample(numbers, x_T, cond) -> a batch of samples.
        numbers: where to differentiate.
        directions: q changes of them.
        x_T: a batch of initial states.
        cond: their conditions.

    Returns:
        The samples, and their q derivatives, with a leading axis.
    """
    jacobian = jax.jacfwd if passes(x_T, len(directions)) == len(directions) else jax.jacrev

    def of_one(x_T: PyTree, cond: PyTree) -> tuple[PyTree, PyTree]:
        alone = jax.tree.map(lambda leaf: leaf[None], (x_T, cond))

        def moved(step: Array) -> tuple[PyTree, PyTree]:
            x = sample(numbers + jnp.matmul(step, directions, precision="highest"), *alone)
            return (jax.tree.map(lambda leaf: leaf[0], x),) * 2

        return jacobian(moved, has_aux=True)(jnp.zeros(len(directions), directions.dtype))

    derivatives, samples = jax.vmap(of_one)(x_T, cond)
    return samples, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), derivatives)


def passes(x_T: PyTree, directions: int) -> int:
    """How many derivatives `sample_and_jacobian_of_each` takes of each state, in forward or reverse mode."""
    return min(directions, sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(x_T)))
