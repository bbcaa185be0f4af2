"""A solver as plain numbers: all that another program needs to run it.

The reader and the loop are `ld3_jax.interop.standalone`, which is plain Python.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.solver import Solver
from ld3_jax.solvers.table import Table

# What is 1 at all times. Programs that measure noise by one number take it to be sigma / alpha, and for flows sigma.
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
        output: what the network predicts, one of `denoisers.PREDICTIONS`; None if that is not known.

    Returns:
        The table's columns; `prediction`, what it takes, "noise" or "data"; `alpha` and `sigma` at the network's times
        `t`, `grid_alpha` and `grid_sigma` at the grid's, where 1 and 0 end a solver that ends without noise;
        `prior_scale`; `process`, "vp", "ve", "flow" or None for any other; `train_steps`, the N of a `VPDiscrete`,
        whose time t is (i + 1) / N at step i, or None; `betas`, its steps by diffusers' arguments, or None; `output`.
        None if states are no vectors with one time for all: other programs only add.
    """
    if not solver.expands(schedule) or len(schedule.parts) > 1:
        return None
    alpha, sigma = np.array(schedule.alpha(t)), np.array(schedule.sigma(t))
    if solver.to_zero:
        alpha[-1], sigma[-1] = 1.0, 0.0
    levels = {"alpha": schedule.alpha(table.t), "sigma": schedule.sigma(table.t)}
    lists = {**table._asdict(), **levels, "grid_alpha": alpha, "grid_sigma": sigma}
    trained = _trained(schedule)
    return {
        "prediction": solver.prediction,
        "process": process(alpha, sigma),
        "train_steps": None if trained is None else len(trained),
        "output": output,
        "betas": None if trained is None else _betas(trained),
        "prior_scale": float(schedule.prior_scale),
        **{name: np.asarray(column).tolist() for name, column in lists.items()},
    }


def process(alpha: Float[np.ndarray, "n"], sigma: Float[np.ndarray, "n"]) -> str | None:
    """The kind of noise by the factors of signal and noise: "ve", "vp", "flow", or None for any other."""
    names = (name for name, one in _PROCESSES.items() if np.allclose(one(alpha, sigma), 1, rtol=0, atol=1e-5))
    return next(names, None)


def _trained(schedule: NoiseSchedule) -> np.ndarray | None:
    """alpha^2 at discrete steps, of a noise schedule that has them at the times (i + 1) / N."""
    given = getattr(schedule, "alphas_cumprod", None)
    if given is None or np.ndim(given) != 1 or not len(given):
        return None
    trained, t = np.array(given), np.arange(1, len(given) + 1) / len(given)
    same = np.allclose(schedule.alpha(jnp.asarray(t)) ** 2, trained, rtol=1e-3, atol=1e-5)
    return trained if same else None


def _betas(alphas_cumprod: np.ndarray) -> dict[str, Any]:
    """The betas as diffusers' schedulers take them: by a formula if it gives these, else one by one."""
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    for name, root in {"linear": 1, "scaled_linear": 2}.items():
        by_formula = np.linspace(betas[0] ** (1 / root), betas[-1] ** (1 / root), len(betas)) ** root
        if np.allclose(by_formula, betas, rtol=1e-4, atol=1e-7):  # checkpoints have single precision
            return {"beta_schedule": name, "beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    return {"trained_betas": betas.tolist()}
