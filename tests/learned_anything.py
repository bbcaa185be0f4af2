"""What might have been learned: times, network times and coefficients, moved at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax.learning import Discretization, Learned, on_grid
from ld3_jax.learning.discretization import no_change
from ld3_jax.solvers import make_table


@functools.cache
def moved(schedule, solver, *, times=0.2, network_times=0.1, coefficients=0.05, seed=0):
    """A `Learned` on the logsnr grid; each of the three moves by about so much, relative to a step or a sum."""
    rng = np.random.default_rng(seed)
    lam = np.asarray(schedule.lam(on_grid("logsnr", schedule, solver).t))
    step = np.diff(lam).min()

    def inner(scale):
        return jnp.asarray(np.pad(scale * step * rng.uniform(-1, 1, len(lam) - 2), 1), jnp.float32)

    at = jnp.asarray(lam) + inner(times)
    t, t_c = (
        schedule.inverse_lam(at + shift).at[0].set(schedule.t_max).at[-1].set(schedule.t_min)
        for shift in (0, inner(network_times))
    )
    t_c = t_c if network_times else t
    change = None
    if coefficients:
        change = jax.tree.map(
            lambda leaf: jnp.asarray(coefficients * rng.normal(size=leaf.shape), leaf.dtype),
            no_change(make_table(schedule, t, solver=solver)),
        )
    found = Discretization(t, t_c, change)
    return Learned(solver, found, np.asarray(found.lam(schedule)), t_start=schedule.t_start)
