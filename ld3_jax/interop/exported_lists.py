"""A learned schedule as a list, for programs that take numbers but no code; each list says what it cannot hold."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ld3_jax import batches
from ld3_jax.denoisers import Model
from ld3_jax.interop.standalone.table import Table as PlainTable
from ld3_jax.learning import Discretization, Learned
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table, integrate

_DIGITS = 7  # significant; programs keep single precision
_NOT_SHIFTED = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
_NO_BETAS = "the arguments lack the betas: make the scheduler with X.from_config(pipe.scheduler.config, **arguments)"
_PREDICTIONS = {"noise": "epsilon", "data": "sample", "v": "v_prediction", None: None}
_MANY = 15  # steps from which diffusers' lower_order_final does nothing


class Listed(NamedTuple):
    """A list, and what a program makes of it.

    Attributes:
        values: the numbers.
        record: a file with the list and related values; None if the program takes the bare list.
        lost: learned numbers that are not in the list.
        notes: how else the list differs from the learned schedule.
        solver: the solver that a program runs on it, to a sigma of 0 if it ends there.
        t: the times that a program reads from the list; the last is t_min even if the program goes to 0.
    """

    values: list[float]
    record: dict[str, Any] | None
    lost: list[str]
    notes: list[str]
    solver: Solver
    t: Float[np.ndarray, "n_points"]


def sigmas(learned: Learned, table: PlainTable, last: str = "kept") -> Listed:
    """Noise levels (sigma / alpha, or sigma for flows) for samplers with one sigma (ComfyUI, A1111, Forge,
    k-diffusion).

    Args:
        learned: the learned schedule.
        table: its table.
        last: "kept": n + 1 numbers, the last one 0 if learned that way; "zero": the last one is 0; "dropped": n
            numbers, for programs that append a 0.

    Raises:
        ValueError: if `last` has another value, or such programs do not know the noise schedule.
    """
    _known(table, ("vp", "ve", "flow"))
    levels, t = table.levels, np.asarray(learned.t, float)
    if last not in _LAST:
        raise ValueError(f"last must be one of {sorted(_LAST)}, got {last!r}")
    values = {"kept": levels, "zero": [*levels[:-1], 0.0], "dropped": levels[:-1]}[last]
    notes = [_LAST[last].format(last=_plain(levels[-1]))]
    if learned.solver.to_zero:
        notes = ["the last step goes to 0, as it was learned"]
    solver = learned.solver if last == "kept" else _to_zero(learned.solver)
    if solver.name == "dpmpp":
        if solver.lowers_order:
            notes.append(
                "k-diffusion's dpmpp_2m lowers its order in a step to 0 alone; learn with lower_order_final False"
            )
        solver = replace(solver, lower_order_final=False)
    return Listed(values, None, _lost(learned), notes, solver, t)


_LAST = {
    "kept": "the last of the n + 1 numbers is {last}: a program that expects 0 there leaves that noise in the sample",
    "zero": "the last of the n + 1 numbers is 0 instead of {last}: the last step goes to the data prediction",
    "dropped": "n numbers, for programs that append 0: the last step goes there, and not to {last}",
}


def diffusers_timesteps(learned: Learned, table: PlainTable) -> Listed:
    """The `timesteps=` of diffusers' DPMSolverMultistepScheduler, with the arguments of its constructor.

    Raises:
        ValueError: if it does not have the solver, or the network was not trained on discrete steps.
    """
    _known(table, ("vp",))
    solver, steps = learned.solver, table.train_steps
    if solver.name not in ("ddim", "dpmpp"):
        raise ValueError(f"DPMSolverMultistepScheduler runs dpmpp or ddim, got {solver}")
    if steps is None:
        raise ValueError("timesteps are for a network of discrete steps (VPDiscrete)")
    if solver.lowers_order and solver.n_steps >= _MANY:
        raise ValueError(
            f"from {_MANY} steps on DPMSolverMultistepScheduler does not lower the order; learn with lower_order_final "
            f"False, got {solver}"
        )
    exact = steps * np.asarray(learned.t, float)[:-1] - 1
    values = np.rint(exact)
    if (np.diff(values) >= 0).any():
        raise ValueError(f"rounded to integers the timesteps no longer descend: {exact.tolist()}")
    arguments = {
        "algorithm_type": "dpmsolver++",
        "solver_order": solver.order,
        "solver_type": "midpoint",
        "lower_order_final": solver.lower_order_final,
        "final_sigmas_type": "zero" if solver.to_zero else "sigma_min",
        **_trained(table),
    }
    notes = [f"timesteps are rounded to integers, by at most {np.abs(values - exact).max():.2f}"]
    notes += [_NO_BETAS] * (table.betas is None)
    t, timesteps = np.append((values + 1) / steps, float(learned.t[-1])), values.astype(int).tolist()
    record = {"format": "diffusers-timesteps", "timesteps": timesteps}
    record |= {"scheduler": "DPMSolverMultistepScheduler", "arguments": arguments}
    return Listed(timesteps, record, _lost(learned), notes, solver, t)


def diffusers_sigmas(learned: Learned, table: PlainTable) -> Listed:
    """The `sigmas=` of diffusers' Euler schedulers: n + 1 numbers, or n for flows, to which the scheduler appends 0.

    Raises:
        ValueError: if the solver does not have order 1, or is not Euler's method on this noise schedule.
    """
    _known(table, ("vp", "flow"))
    solver, flow = learned.solver, table.process == "flow"
    levels, t = table.levels, np.asarray(learned.t, float)
    in_sigma = table.process != "vp" and np.allclose(t[:-1], levels[:-1], rtol=1e-5)  # same steps as ddim
    if solver.order != 1 or solver.name not in ("ddim", "dpmpp", "ipndm", *(("euler",) if in_sigma else ())):
        raise ValueError(f"diffusers' Euler schedulers make ddim's steps; learn with solver.name=ddim, got {solver}")
    record = {"format": "diffusers-sigmas", "sigmas": levels[:-1] if flow else levels}
    if flow:
        record |= {"scheduler": "FlowMatchEulerDiscreteScheduler", "arguments": {**_NOT_SHIFTED, **_trained(table)}}
        notes = [f"the scheduler appends 0: the last step goes there, and not to {_plain(levels[-1])}"]
        return Listed(levels[:-1], record, _lost(learned), [] if solver.to_zero else notes, _to_zero(solver), t)
    first = f"the image plus normal noise times {_plain(levels[0])}"  # below full noise
    if table.prior_scale is not None:
        scale = _plain(1 / table.grid_alpha[0] * table.prior_scale)
        first = f"normal noise times {scale}; the scheduler's own init_noise_sigma is {_plain(levels[0])}"
    end = "zero" if solver.to_zero else "sigma_min"
    record |= {"scheduler": "EulerDiscreteScheduler", "arguments": {"final_sigmas_type": end, **_trained(table)}}
    notes = [f"start from {first}"]
    notes += [_NO_BETAS] * (table.betas is None)
    return Listed(levels, record, _lost(learned), notes, solver, t)


def text(values: list[float]) -> str:
    """Comma-separated plain decimals, without exponents, which some programs misread."""
    return ", ".join(_plain(value) for value in values)


def as_run(listed: Listed, learned: Learned, schedule: NoiseSchedule) -> Table:
    """The table of the solver that a program runs on a list.

    Args:
        listed: the list.
        learned: the learned schedule.
        schedule: its noise schedule.
    """
    t = jnp.asarray(listed.t, learned.t.dtype)
    return Discretization(t, t).table(schedule, listed.solver)


def distance(
    listed: Listed,
    learned: Learned,
    model: Model,
    schedule: NoiseSchedule,
    x_T: PyTree,
    cond: PyTree = None,
    batch_size: int = 25,
) -> tuple[float, float]:
    """How far the samples of a list are from the learned schedule's: mean square, and its root relative to the latter.

    Args:
        listed: the list.
        learned: the learned schedule.
        model, schedule: the model that it was learned for, and its noise schedule.
        x_T, cond: noises, and their conditions.
        batch_size: the most samples at a time.
    """

    @jax.jit
    def run(table: Table) -> PyTree:
        def of_batch(inputs: tuple[PyTree, PyTree]) -> PyTree:
            return integrate(model, schedule, learned.solver, table, inputs[0], cond=inputs[1], remat=False)

        return batches.in_batches(of_batch, (x_T, cond), batch_size)

    tables = learned.table(schedule), as_run(listed, learned, schedule)
    ours, theirs = (np.asarray(run(table)) for table in tables)
    squared = np.mean((ours - theirs) ** 2)
    return float(squared), float(np.sqrt(squared / np.mean(ours**2)))


def _to_zero(solver: Solver) -> Solver:
    """The solver as programs run it to a sigma of 0; a step of two calls has only one there."""
    return replace(solver, nfe=None, last_sigma=0.0).for_steps(solver.n_steps)


def _known(table: PlainTable, processes: tuple[str, ...]) -> None:
    if table.process not in processes:
        raise ValueError(f"the program knows noise schedules of the kinds {list(processes)}, got {table.process!r}")


def _trained(table: PlainTable) -> dict[str, Any]:
    """Arguments of diffusers' schedulers that say how the network was trained, as far as known."""
    names = {"flow": None, None: None} if table.process == "flow" else _PREDICTIONS
    if table.output not in names:
        raise ValueError(
            f"the scheduler takes networks that predict {list(names)[:-1]}, got {table.output!r}; use LearnedScheduler"
        )
    known = {"num_train_timesteps": table.train_steps, "prediction_type": names[table.output]}
    return {**(table.betas or {}), **{name: value for name, value in known.items() if value is not None}}


def _lost(learned: Learned) -> list[str]:
    t, t_c = np.asarray(learned.t, float), np.asarray(learned.t_c, float)
    lost = [] if learned.coefficients is None else ["coefficients"]
    return lost + ([] if np.allclose(t, t_c, rtol=1e-5, atol=1e-7) else ["network times"])


def _plain(value: float) -> str:
    return np.format_float_positional(value, precision=_DIGITS, fractional=False, trim="0")
