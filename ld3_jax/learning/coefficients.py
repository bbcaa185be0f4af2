"""A parametrisation on top of another: the solver's coefficients, learned together with its times."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from ld3_jax import grids
from ld3_jax.learning.discretization import Coefficients, Discretization, consistent, effective, like_another, no_change
from ld3_jax.learning.gaps import Gaps
from ld3_jax.learning.parametrisation import Group, Mask, Parametrisation, Params, all_of, known_groups
from ld3_jax.ranges import COUNT, FLAG, check, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, make_table

_GAPS = Gaps()
_OTHERS = (("dpmpp", 3), ("unipc", 3), ("ipndm", 2))  # possible starts, with the orders that start best


@jax.tree_util.register_static
@dataclass(frozen=True)
class WithCoefficients:
    """Gaps and shifts, and additive changes of the solver's coefficients; see `discretization.changed`.

    Attributes:
        times: the parametrisation of the times.
        consistent: change the coefficients only so that constants still integrate exactly.
        history: how many past predictions the changes reach back to; None: all.
        frozen: ("coefficients",) keeps the coefficients of the start.

    Raises:
        ValueError: if history is less than 1 or a group is unknown.

    Reference: arXiv:2502.17423 (S4S); arXiv:2403.01329 (BNS).
    """

    times: Parametrisation = _GAPS
    consistent: bool = False
    history: int | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self, {"times": instance(Parametrisation), "consistent": FLAG, "history": COUNT.or_none()})
        known_groups(self.frozen, ("coefficients",))

    def init(self, start: Discretization, schedule: NoiseSchedule, solver: Solver) -> Params:
        """The numbers of the times, and the start's coefficients, or zeros where it has none.

        Raises:
            ValueError: if history is more than the solver's number of network calls, the start's coefficients look back
                further or are not consistent, or the times' parametrisation has its own coefficients.
        """
        check({"history": self.history}, {"history": COUNT._replace(most=solver.calls).or_none()})
        numbers, change = self.times.init(start._replace(coefficients=None), schedule, solver), start.coefficients
        if "coefficients" in numbers:
            raise ValueError(f"times must be a parametrisation without coefficients, got {self.times}")
        if change is not None:
            self._check(change)
        else:
            part = schedule.parts[0]  # the tables of all parts have the same shape
            table = jax.eval_shape(partial(make_table, part, solver=solver), start.t)
            change = no_change(table, self.history, base=solver.expands(part))
        return {**numbers, "coefficients": change}

    def _check(self, change: Coefficients) -> None:
        back = change.predict.shape[1]
        if self.history is not None and back > self.history:
            raise ValueError(f"the start's coefficients look back at {back} predictions, history is {self.history}")
        nearest = consistent(change) if self.consistent else change
        if not jax.tree.all(jax.tree.map(partial(np.allclose, atol=1e-4), change, nearest)):
            raise ValueError("the start's coefficients do not integrate constants exactly, so consistent must be False")

    def starts(self, grid: str, schedule: NoiseSchedule, solver: Solver) -> dict[str, Discretization]:
        """The solver itself and, if all coefficients are free, other solvers on the grid."""
        starts = self.times.starts(grid, schedule, solver)
        parts = len(schedule.parts)
        if self.consistent or self.history is not None or self.frozen or solver.calls_per_step > 1 or parts > 1:
            return starts  # the changes that turn one solver into another differ between parts
        for name, order in _OTHERS:
            other = Solver(name, solver.calls, min(order, solver.n_steps), last_sigma=solver.last_sigma)
            if (other.name, other.order) != (solver.name, solver.order):
                t = grids.grid(grid, schedule, solver.n_steps)
                starts[f"{grid} as {name} {other.order}"] = _like_another(other, t, schedule, solver)
        return starts

    def discretization(self, params: Params, schedule: NoiseSchedule, solver: Solver) -> Discretization:
        change = params["coefficients"]
        discretization = self.times.discretization(_of_times(params), schedule, solver)
        return discretization._replace(coefficients=consistent(change) if self.consistent else change)

    def project(self, params: Params, schedule: NoiseSchedule) -> Params:
        return {**self.times.project(_of_times(params), schedule), "coefficients": params["coefficients"]}

    def learned(self, params: Params) -> Mask:
        times, change = _of_times(params), params["coefficients"]
        if self.frozen:
            return self.times.learned(times) | all_of({"coefficients": change}, self.frozen)
        own = effective(change)
        if self.consistent:  # which keeps the base as it is
            own = own._replace(base=jax.tree.map(np.logical_not, own.base))
        return self.times.learned(times) | {"coefficients": own}

    def groups(self, solver: Solver) -> dict[str, Group]:
        own = {} if self.frozen else {"coefficients": Group(0.05 / solver.n_steps)}
        return self.times.groups(solver) | own


def _of_times(params: Params) -> Params:
    return {name: group for name, group in params.items() if name != "coefficients"}


_like_another = jax.jit(like_another)
