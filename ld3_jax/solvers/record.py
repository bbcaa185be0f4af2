"""A solver as plain numbers: everything that another program needs to run it.

The reader and the loop are `ld3_jax.interop.standalone`, which is plain Python.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.solver import Solver
from ld3_jax.solvers.table import Table

# What is 1 at all times. Programs that measure noise by one number use sigma / alpha, and sigma for flows.
_PROCESSES: dict[str, Callable[[Any, Any], Any]] = {
    "ve": lambda alpha, sigma: alpha,
    "vp": lambda alpha, sigma: alpha**2 + sigma**2,
    "flow": lambda alpha, sigma: alpha + sigma,
}


def to_record(
    table: Table, schedule: NoiseSchedule, t: Float[Array, "n_points *parts"], solver: Solver, output: str | None = None
) -> dict[str, Any] | None:
    """A table and the noise levels that belong to it, as JSON takes them.

    Args:
        table: a solver's table, perhaps with learned changes.
        schedule: the noise schedule.
        t: the times of the grid.
        solver: the solver whose table it is.
        output: what the network predicts, one of `denoisers.PREDICTIONS`; None if unknown.

    Returns:
        The table's columns; `prediction`, what it takes, "noise" or "data"; `alpha` and `sigma` at the network's times
        `t`, `grid_alpha` and `grid_sigma` at the grid's, where 1 and 0 end a solver that ends without noise;
        `prior_scale`, which is None below full noise; `full_noise`, there the `noise_level` from which the model's own
        noise schedule starts, else None; `process`, "vp", "ve", "flow" or None for any other; `train_steps`, the N of
        a `VPDiscrete`, whose time t is (i + 1) / N at step i, or None; `betas`, its steps by diffusers' arguments, or
        None; `output`.
        None unless states are vectors with one time for all: other programs can only add.
    """
    if not solver.expands(schedule) or len(schedule.parts) > 1:
        return None
    alpha, sigma = np.array(schedule.alpha(t)), np.array(schedule.sigma(t))
    if solver.to_zero:
        alpha[-1], sigma[-1] = 1.0, 0.0
    levels = {"alpha": schedule.alpha(table.t), "sigma": schedule.sigma(table.t)}
    lists = {**table._asdict(), **levels, "grid_alpha": alpha, "grid_sigma": sigma}
    trained = _trained(schedule.whole)
    return {
        "prediction": solver.prediction,
        "process": process_of(alpha, sigma),
        "train_steps": None if trained is None else len(trained),
        "output": output,
        "betas": None if trained is None else _betas(trained),
        "prior_scale": float(schedule.prior_scale) if schedule.t_start is None else None,
        "full_noise": None if schedule.t_start is None else noise_level(schedule.whole, schedule.whole.t_max),
        **{name: np.asarray(column).tolist() for name, column in lists.items()},
    }


def process_of(alpha: Any, sigma: Any) -> str | None:
    """The kind of noise, "ve", "vp" or "flow", by alpha and sigma at some times; None for any other."""
    names = [name for name, one in _PROCESSES.items() if np.allclose(one(alpha, sigma), 1, rtol=0, atol=1e-5)]
    return names[0] if names else None


def process_of_schedule(schedule: NoiseSchedule) -> str | None:
    """The kind of noise of a noise schedule, judged by its whole range."""
    with jax.ensure_compile_time_eval():
        t = jnp.linspace(schedule.whole.t_min, schedule.whole.t_max, 9)
        return process_of(np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t)))


def noise_level(schedule: NoiseSchedule, t: float) -> float:
    """Noise at a time as programs measure it by one number: sigma for flows, sigma / alpha for all others."""
    with jax.ensure_compile_time_eval():
        sigma, lam = (float(of(jnp.asarray(t))) for of in (schedule.sigma, schedule.lam))
    return sigma if process_of_schedule(schedule) == "flow" else math.exp(-lam)


def _trained(schedule: NoiseSchedule) -> np.ndarray | None:
    """alpha^2 at the discrete steps of a noise schedule with the times (i + 1) / N."""
    given = getattr(schedule, "alphas_cumprod", None)
    if given is None or np.ndim(given) != 1 or not len(given):
        return None
    trained, t = np.array(given), np.arange(1, len(given) + 1) / len(given)
    same = np.allclose(schedule.alpha(jnp.asarray(t)) ** 2, trained, rtol=1e-3, atol=1e-5)
    return trained if same else None


def _betas(alphas_cumprod: np.ndarray) -> dict[str, Any]:
    """The betas as diffusers' schedulers take them: by a formula if it gives them, otherwise one by one."""
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    for name, root in {"linear": 1, "scaled_linear": 2}.items():
        by_formula = np.linspace(betas[0] ** (1 / root), betas[-1] ** (1 / root), len(betas)) ** root
        if np.allclose(by_formula, betas, rtol=1e-4, atol=1e-7):  # checkpoints have single precision
            return {"beta_schedule": name, "beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    return {"trained_betas": betas.tolist()}
