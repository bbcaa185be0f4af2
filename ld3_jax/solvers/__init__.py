"""Solvers of the diffusion ODE. Each is a table of coefficients that depend on the times, and one scan runs them all.

A family is a pure function (schedule, t, t_c, **choices) -> Table; its formula, its weights and its row in `SOLVERS`
are in one file.
"""

from ld3_jax.solvers.expansion import Expansion, converted, expand
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.record import to_record
from ld3_jax.solvers.solver import SOLVERS, Solver, integrate, make_table, sample
from ld3_jax.solvers.table import State, Table, advanced, begun, explicit, solve, states

__all__ = [
    "SOLVERS",
    "Expansion",
    "Family",
    "Solver",
    "State",
    "Table",
    "advanced",
    "begun",
    "converted",
    "expand",
    "explicit",
    "integrate",
    "make_table",
    "sample",
    "solve",
    "states",
    "to_record",
]
