"""A solver by name with its static choices: its table on a grid, and sampling with it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ld3_jax import denoisers
from ld3_jax.denoisers import Model
from ld3_jax.grids import check_times
from ld3_jax.ranges import ARRAYS, CALLS, FLAG, NUMBER, STATES, check, entrance, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import deis, dpmpp, euler, ipndm, two_stage, unipc
from ld3_jax.solvers.expansion import as_updates, converted, expand
from ld3_jax.solvers.family import Family
from ld3_jax.solvers.table import Table, solve

# Open to additions: a solver of your own is one function and one entry.
SOLVERS: dict[str, Family] = {
    **euler.FAMILIES,
    **two_stage.FAMILIES,
    **dpmpp.FAMILIES,
    **unipc.FAMILIES,
    **ipndm.FAMILIES,
    **deis.FAMILIES,
}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Solver:
    """A solver with its static choices, checked when it is built.

    Attributes:
        name: a name in SOLVERS.
        nfe: network calls in all, at most 10,000; None: as many as the grid asks for.
        order: one of the family's orders; None becomes the highest.
        variant: "bh1" or "bh2" for UniPC; None becomes the family's first variant. Other families have none.
        lower_order_final: whether the order falls to 1 over the last steps (dpmpp, unipc).
        last_sigma: None: the last step ends at the noise schedule's t_min. 0: it ends without noise, in the data
            prediction of its call, as in programs whose noise levels end at 0; t_min is then only the end of the grid.
            That step has one call, so heun and dpm2 need an odd nfe.

    Raises:
        ValueError: if a value does not exist, or nfe is too small for the order, too large, or even where it must be
            odd.
    """

    name: str = "dpmpp"
    nfe: int | None = None
    order: int | None = None
    variant: str | None = None
    lower_order_final: bool = True
    last_sigma: float | None = None

    def __post_init__(self) -> None:
        if not _one_of(self.name, SOLVERS):
            raise ValueError(f"solver must be one of {sorted(SOLVERS)}, got {self.name!r}")
        family = SOLVERS[self.name]
        order = family.orders[-1] if self.order is None else NUMBER.plain(self.order)
        if not _one_of(order, family.orders):
            raise ValueError(f"solver {self.name!r} has the orders {list(family.orders)}, got {order!r}")
        variant = next(iter(family.variants), None) if self.variant is None else self.variant
        if variant is not None and not _one_of(variant, family.variants):
            raise ValueError(f"solver {self.name!r} has the variants {list(family.variants)}, got {self.variant!r}")
        nfe, last_sigma = NUMBER.plain(self.nfe), NUMBER.plain(self.last_sigma)
        if nfe is not None and (type(nfe) is not int or nfe < order):
            raise ValueError(
                f"solver {self.name!r} of order {order} needs an integer nfe of at least {order}, got {self.nfe!r}"
            )
        if not _one_of(last_sigma, (None, 0, 0.0)):
            raise ValueError(f"last_sigma must be None or 0, got {self.last_sigma!r}")
        settle(self, {"nfe": CALLS.or_none(), "lower_order_final": FLAG})
        if self.to_zero and self.nfe is not None and family.calls_per_step > 1 and self.nfe % 2 == 0:
            raise ValueError(
                f"with last_sigma 0 the last step of {self.name!r} has one call, so nfe must be odd, got {self.nfe}"
            )
        for name, value in {"order": order, "variant": variant, "last_sigma": last_sigma}.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        calls, end = "" if self.nfe is None else f", {self.nfe} calls", ", to sigma 0" if self.to_zero else ""
        return f"{self.name} of order {self.order}{calls}{end}"

    @property
    def to_zero(self) -> bool:
        """Whether the last step ends without noise."""
        return self.last_sigma is not None

    @property
    def lowers_order(self) -> bool:
        """Whether its order falls over the steps before the last one."""
        return self.lower_order_final and self.order is not None and self.order > 1 + self.to_zero

    @property
    def prediction(self) -> str:
        """The prediction it takes: "noise" or "data"; on a manifold always noise, see `takes`."""
        return SOLVERS[self.name].prediction

    def takes(self, schedule: NoiseSchedule) -> str:
        """The prediction that its tables on a noise schedule take: its own kind, or noise on a manifold.

        Raises:
            ValueError: if it ends in a data prediction, which a manifold does not have.
        """
        if self.to_zero and not schedule.space.flat:
            raise ValueError(f"last_sigma must be None where states lie on a manifold, got {self.last_sigma} of {self}")
        return self.prediction if schedule.space.flat else "noise"

    def expands(self, schedule: NoiseSchedule) -> bool:
        """Whether each of its states is a sum of the initial state and past predictions (`expand`), as vectors are.

        Then all factors of these sums can be changed. On a manifold the only factor of a base is 1.
        """
        return schedule.space.flat

    @property
    def calls(self) -> int:
        """Network calls in all: nfe, or a ValueError if that is None."""
        if self.nfe is None:
            raise ValueError(f"{self!r} has as many steps as its grid: give it nfe, its number of network calls")
        return self.nfe

    @property
    def n_steps(self) -> int:
        """Intervals of the grid: nfe, or (nfe + 1) // 2 with two calls a step; the last step of an odd nfe has one."""
        return -(-self.calls // self.calls_per_step)

    @property
    def calls_per_step(self) -> int:
        """Network calls for one step of the grid."""
        return SOLVERS[self.name].calls_per_step

    @entrance(n=CALLS._replace(least=0))
    def for_steps(self, n: int) -> "Solver":
        """The solver on a grid of n steps: itself, or with the nfe that the grid needs.

        Raises:
            ValueError: if nfe is for another number of steps, or too small for the order.
        """
        if self.nfe is None:
            one_less = self.to_zero and self.calls_per_step > 1  # the last step has one call
            return replace(self, nfe=n * self.calls_per_step - one_less)
        if self.n_steps != n:
            raise ValueError(f"{self.name!r} with nfe {self.nfe} takes a grid of {self.n_steps} steps, got {n} steps")
        return self


def make_table(
    schedule: NoiseSchedule,
    t: Float[Array, "n_points *parts"],
    t_c: Float[Array, "n_points *parts"] | None = None,
    *,
    solver: str | Solver = "dpmpp",
) -> Table:
    """The coefficients of a solver on a grid.

    Args:
        schedule: the noise schedule.
        t: (n_steps + 1,) descending times between t_max and t_min, the last perhaps 0 if the solver ends there;
            (n_steps + 1, parts) if each part of the noise schedule has its own times.
        t_c: times given to the network instead of t; only heun uses the last one. Default: t.
        solver: a name in SOLVERS, or a `Solver`.

    Returns:
        A table of nfe rows, in the dtype of t. For a noise schedule of several parts, its columns are joined as the
        schedule's space joins them.

    Raises:
        ValueError: if a shape or the solver's number of calls does not fit the grid, the times are integers or invalid
            for the noise schedule (`grids.check_times`, outside jit), or the solver does not fit it (`Solver.takes`).
    """
    check({"schedule": schedule}, {"schedule": instance(NoiseSchedule)})
    t, t_c = jnp.asarray(t), jnp.asarray(t if t_c is None else t_c)
    several = len(schedule.parts) > 1
    if t.shape != t_c.shape or not (t.ndim == 1 or (several and t.shape[1:] == (len(schedule.parts),))):
        by_part = f", or by part (n, {len(schedule.parts)})" if several else ""
        raise ValueError(f"t and t_c must be vectors of one length{by_part}, got shapes {t.shape} and {t_c.shape}")
    solver = _as_solver(solver).for_steps(len(t) - 1)
    check_times(t, t_c, schedule, to_zero=solver.to_zero)
    if not all(jnp.issubdtype(times.dtype, jnp.floating) for times in (t, t_c)):
        raise ValueError(f"t and t_c must be of a floating-point dtype, got {t.dtype} and {t_c.dtype}")
    family = SOLVERS[solver.name]
    if not several:
        return _table(schedule, t, t_c, solver, family)
    return joined(
        schedule, [_table(part, *of_part((t, t_c), i), solver, family) for i, part in enumerate(schedule.parts)]
    )


def of_part(times: tuple[Array, ...], i: int) -> tuple[Array, ...]:
    """The times of one part; some may be shared by all parts."""
    return tuple(t if t.ndim == 1 else t[:, i] for t in times)


def joined(schedule: NoiseSchedule, tables: list[Table]) -> Table:
    """The tables of a noise schedule's parts as one table."""
    return Table(*map(schedule.space.join, zip(*tables, strict=True)))


@partial(jax.jit, static_argnames=("family",))  # one program, if a table is made outside any other
def _table(schedule: NoiseSchedule, t: Array, t_c: Array, solver: Solver, family: Family) -> Table:
    if solver.to_zero:  # no row that is kept depends on the last time; one far from that before keeps gradients finite
        low, high = schedule.t_min, schedule.t_max
        t = t.at[-1].set(jnp.where(2 * t[-2] > low + high, low, (t[-2] + high) / 2))
    table = family.table(
        schedule,
        t,
        t_c,
        order=solver.order,
        variant=solver.variant,
        lower_order_final=solver.lower_order_final,
        nfe=solver.nfe,
    )
    if len(table.t) != solver.nfe:
        raise ValueError(f"the table of {solver} must have a row for each network call, got {len(table.t)} rows")
    if solver.to_zero:
        table = _ending_in_data(table, schedule, solver.prediction)
    if solver.takes(schedule) == solver.prediction:
        return table
    return as_updates(converted(expand(table), schedule, solver.prediction, "noise"))


def _ending_in_data(table: Table, schedule: NoiseSchedule, prediction: str) -> Table:
    """The table whose last row is x' = D, the data prediction of its call.

    This is the limit of every family's step of order 1 at sigma' -> 0. No infinite lam is computed: the row replaces
    one that ends at t_min, so that gradients stay finite.
    """
    at = table.t[-1]
    of_base, of_newest = {
        "data": (0.0, 1.0),
        "noise": (1 / schedule.alpha(at), -schedule.sigma(at) / schedule.alpha(at)),
    }[prediction]
    return table._replace(
        predict_base=table.predict_base.at[-1].set(of_base),
        predict_history=table.predict_history.at[-1].set(0.0).at[-1, 0].set(of_newest),
    )


@entrance(schedule=instance(NoiseSchedule), solver=instance(Solver), table=instance(Table), x_T=STATES, cond=ARRAYS)
def integrate(
    model: Model,
    schedule: NoiseSchedule,
    solver: Solver,
    table: Table,
    x_T: PyTree[Float[Array, "..."]],
    *,
    cond: PyTree = None,
    remat: bool = True,
) -> PyTree[Float[Array, "..."]]:
    """Run a solver's table in the space of the noise schedule.

    Args:
        model: model(x, t, cond) -> noise prediction.
        schedule: its noise schedule.
        solver: the solver of the table.
        table: its coefficients, as they are or changed.
        x_T: state at t_max, scaled by the prior.
        cond: passed to the model.
        remat: see `solve`.
    """
    return _integrate(denoisers.as_pytree(model), schedule, solver, table, x_T, cond, remat)


@partial(jax.jit, static_argnums=6)  # one program, if a solver is run outside any other
def _integrate(
    model: Model, schedule: NoiseSchedule, solver: Solver, table: Table, x_T: PyTree, cond: PyTree, remat: bool
) -> PyTree:
    space, predict = schedule.space, denoisers.convert(model, schedule, solver.takes(schedule))
    return solve(predict, table, x_T, cond=cond, remat=remat, retract=space.retract, update_like=space.tangent(x_T))


def sample(
    model: Model,
    schedule: NoiseSchedule,
    x_T: PyTree[Float[Array, "..."]],
    t: Float[Array, "n_points *parts"],
    t_c: Float[Array, "n_points *parts"] | None = None,
    *,
    solver: str | Solver = "dpmpp",
    cond: PyTree = None,
) -> PyTree[Float[Array, "..."]]:
    """Integrate the diffusion ODE from x_T on the grid t. Pure: use it under jit, grad, vmap.

    Args:
        model: model(x, t, cond) -> noise prediction; see `ld3_jax.denoisers` for other kinds.
        schedule: its noise schedule.
        x_T: state at t_max, scaled by `schedule.prior_scale`; an array or a pytree of arrays.
        t: (n_steps + 1,) descending times from t_max to t_min.
        t_c: (n_steps + 1,) times given to the network; default t.
        solver: a name in SOLVERS, or a `Solver`.
        cond: passed to the model.

    Returns:
        x_0, shaped like x_T.

    Raises:
        ValueError: see `make_table`.

    Reference: Tong et al., arXiv:2405.15506, for the decoupled times t_c.
    """
    solver = _as_solver(solver)
    return integrate(model, schedule, solver, make_table(schedule, t, t_c, solver=solver), x_T, cond=cond)


def _as_solver(solver: str | Solver) -> Solver:
    return solver if isinstance(solver, Solver) else Solver(solver)


def _one_of(value: Any, allowed: Collection) -> bool:
    """Whether a value is one of the allowed ones, with the same type: True is not 1, and a list is not a name."""
    return any(type(value) is type(one) and value == one for one in allowed)
