"""Learned solvers of others, from their files: EPD, DyWeight, NeuralSolver, the Generalized Solver.

Each sampler is run once on unit vectors, which shows how each of its states is a sum of the first state and of the
network's predictions. This is a solver with one call a step, written here as changes of another such solver.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ld3_jax.grids import check_times
from ld3_jax.interop import files_of_others
from ld3_jax.interop.samplers_of_others import Model, Sampler
from ld3_jax.learning.discretization import Discretization, like_expansion
from ld3_jax.learning.gaps import with_ends
from ld3_jax.published import SAME_END
from ld3_jax.ranges import CALLS, PATH, entrance, instance
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Expansion, Solver, converted, expand
from ld3_jax.solvers.record import process_of_schedule

_TIMES_TOO = (".pt", ".pth")  # LD3's files also end like this
_LAST = 0.05  # the most noise that may be left in a sample
_CALL_BEFORE = "a call of weight 0 comes first, since theirs is not made with the first state"
_PRECISE = 1e-4  # relative error allowed in single precision
# sigma / alpha of a model's noise as the factor of the signal, in states of variance-preserving noise.
_ALPHA: dict[str, Callable[[float], float]] = {
    "vp": lambda level: 1 / np.sqrt(1 + level**2),
    "ve": lambda level: 1.0,
    "flow": lambda level: 1.0,  # its samplers take its states as they are
}


class Imported(NamedTuple):
    """A solver from another program.

    Attributes:
        discretization: its times and coefficients, as changes of a solver of this library.
        notes: where it comes from, and how it differs.
    """

    discretization: Discretization
    notes: list[str]


class _WrittenOut(NamedTuple):
    """Each state, in the model's units, as a sum of the first one and of predictions; the levels of the calls."""

    levels: list[float]
    states: Float[np.ndarray, "nfe+1 nfe+1"]


def holds_solver(path: Path) -> bool:
    """Whether a file holds a learned solver, and not only times: one of FORMATS, or an unknown pickle or module.

    Raises:
        ValueError: if it is damaged, or would run code.
    """
    if not path.is_file() or path.suffix not in (*_TIMES_TOO, ".pkl", ".ckpt", ".py"):
        return False
    return path.suffix not in _TIMES_TOO or files_of_others.name_of(files_of_others.content(path)) is not None


@entrance(path=PATH, schedule=instance(NoiseSchedule), solver=instance(Solver), side=CALLS)
def read_solver(path: str | Path, schedule: NoiseSchedule, solver: Solver, *, side: int = 512) -> Imported:
    """A learned solver from another program.

    Args:
        path: EPD's or DyWeight's network-snapshot.pkl, DyWeight's .pt of Flux, a checkpoint of the Generalized Solver,
            or a module of NeuralSolver with FM_DATA or DDPM_DATA.
        schedule: the noise schedule of the model that it was learned for.
        solver: the solver whose coefficients are changed, with as many calls. Learning continues with this solver.
        side: side of the images in pixels; only for DyWeight's .pt, whose levels depend on it.

    Returns:
        The discretization for `Learned(solver, discretization, ...)`. If the first call is not made with the first
        state, a call of weight 0 is put before it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or not such a file, for another model or number of calls, or beyond what this
            solver can be changed to.

    Reference: arXiv:2507.14797 (EPD), arXiv:2603.11607 (DyWeight), arXiv:2505.21114 (NeuralSolver), arXiv:2510.17699
    (Generalized Solver).
    """
    path = Path(path)
    if solver.calls_per_step > 1 or solver.to_zero:
        raise ValueError(f"solver must have one call a step and last_sigma None, got {solver}")
    if len(schedule.parts) > 1 or not solver.expands(schedule):
        raise ValueError(f"states must be vectors with one time for all, got {schedule!r:.200}")
    precision = jnp.result_type(float)
    try:
        # A number that is too large becomes infinite and is refused.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            with jax.enable_x64(True):
                model = _model(schedule, solver.calls, side)
                name, sampler = files_of_others.read(path, model)
                notes = [f"{name}: {', '.join(sampler.notes)}" if sampler.notes else name]
                notes += _check_ends(sampler, model)
                written, more = _written_out(sampler, model)
                target, found = _as_changes(written, model, schedule, solver, precision)
            found = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), precision), found)
            _check_precision(_expand(found.table(schedule, solver)), target, schedule, solver)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    return Imported(found, notes + more)


# Each is compiled as one program.
_converted, _expand = jax.jit(converted, static_argnums=(2, 3)), jax.jit(expand)
_like_expansion = jax.jit(like_expansion, static_argnums=1)


def _model(schedule: NoiseSchedule, calls: int, side: int) -> Model:
    ends = (float(schedule.t_max), float(schedule.t_min))
    kind = process_of_schedule(schedule)
    if kind is None:
        raise ValueError(f"the noise must be of the kind {', '.join(_ALPHA)}, got {schedule!r:.200}")

    def level(t: Any) -> np.ndarray:
        return np.asarray(schedule.sigma(jnp.asarray(t)) if kind == "flow" else jnp.exp(-schedule.lam(jnp.asarray(t))))

    most, least = level(np.array(ends))
    return Model(
        kind,
        float(most),
        float(least),
        ends,
        lambda t: np.asarray(schedule.log_alpha(jnp.asarray(t))),
        level,
        calls,
        side,
    )


def _check_ends(sampler: Sampler, model: Model) -> list[str]:
    if abs(sampler.start - model.most) > SAME_END * model.most:
        raise ValueError(f"it starts at the noise level {sampler.start:g}, and the model at {model.most:g}")
    if sampler.end > max(_LAST, (1 + SAME_END) * model.least):
        raise ValueError(f"it ends at the noise level {sampler.end:g}, and the model at {model.least:g}")
    if abs(sampler.end - model.least) <= SAME_END * model.least:
        return []
    return [f"it ends at the noise level {sampler.end:.3g}, which is written as the model's {model.least:.3g}"]


def _written_out(sampler: Sampler, model: Model) -> tuple[_WrittenOut, list[str]]:
    counted: list[float] = []
    sampler.run(lambda x, level: counted.append(level) or 0.0, 0.0)
    units, alpha = np.eye(1 + len(counted)), _ALPHA[model.process]
    levels, states = [_allowed(level, model) for level in counted], []

    def network(x: np.ndarray, level: float) -> np.ndarray:
        unit, now = units[1 + len(states)], levels[len(states)]
        states.append(alpha(now) * x)
        return (x - unit) / now if model.process == "flow" else unit

    last = sampler.run(network, units[0] / alpha(sampler.start))
    rows = np.stack([*states, alpha(model.least) * last])
    beyond = [f"{level:.4g}" for level, now in zip(counted, levels, strict=True) if abs(level - now) > 1e-5 * now]
    notes = [f"the network is asked at its own ends, and not beyond at {', '.join(beyond)}"] * bool(beyond)
    if abs(rows[0, 0] - 1) > 1e-6:  # the first call is not made with the first state
        rows, levels = np.insert(np.vstack([units[0], rows]), 1, 0.0, axis=1), [model.most, *levels]
        notes.append(f"{_CALL_BEFORE}: theirs are {len(counted)}")
    if (calls := len(levels)) != model.calls:
        more = f" ({_CALL_BEFORE})" * (calls > len(counted))
        raise ValueError(f"it makes {calls} network calls{more}: solver.nfe must be {calls}, got {model.calls}")
    if not np.isfinite(rows).all():
        raise ValueError("its coefficients must be finite")
    return _WrittenOut(levels, rows), notes


def _allowed(level: float, model: Model) -> float:
    """A level at which the network is called, within the model's range."""
    allowed = min(max(level, model.least), model.most)
    if not abs(level - allowed) <= SAME_END * allowed:
        raise ValueError(
            f"it asks the network at the noise level {level:g}; this model's are {model.most:g} to {model.least:g}"
        )
    return allowed


def _as_changes(
    written: _WrittenOut, model: Model, schedule: NoiseSchedule, solver: Solver, precision: np.dtype
) -> tuple[Expansion, Discretization]:
    """The written-out solver for the prediction that `solver` takes, and the changes that give it.

    The changes are relative to the table as it will be built again, in the same precision.
    """
    t, t_c = _times(written.levels, model, schedule)
    check_times(t, t_c, schedule, whole=True)
    target = Expansion(jnp.asarray(t_c[:-1]), *map(jnp.asarray, (written.states[:, 0], written.states[:, 1:])))
    takes = solver.takes(schedule)
    target = _converted(target, schedule, "data" if model.process == "flow" else "noise", takes)
    times = with_ends(jnp.asarray(t, precision), schedule), jnp.asarray(t_c, precision)
    return target, _like_expansion(target, takes, *times, schedule, solver)


def _times(levels: list[float], model: Model, schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """Times of the steps and of the calls: the same, unless calls share a time or begin later than their step."""
    level = np.array([*levels, model.least])
    lam = np.log1p(-level) - np.log(level) if model.process == "flow" else -np.log(level)
    t_c = np.clip(np.asarray(schedule.inverse_lam(jnp.asarray(lam))), model.ends[1], model.ends[0])
    t = t_c.copy()
    t[0], t[-1], t_c[-1] = *model.ends, model.ends[1]
    if (rises := np.flatnonzero(np.diff(t_c) > 1e-5 * t_c[:-1])).size:
        first, then = level[rises[0] : rises[0] + 2]
        raise ValueError(
            f"it asks the network at the noise level {first:.5g} and then at {then:.5g}; here levels must fall"
        )
    for i in range(1, len(t) - 1):
        if t[i] > (below := t[i - 1] * (1 - 1e-4)):
            lower = next((one for one in t_c[i:] if one < below), t[-1])
            t[i] = t[i - 1] + 0.01 * (lower - t[i - 1])
    return t, t_c


def _check_precision(found: Expansion, target: Expansion, schedule: NoiseSchedule, solver: Solver) -> None:
    """Refuse changes that single precision cannot hold."""
    rows = [np.column_stack([schedule.prior_scale * np.asarray(one.initial), one.history]) for one in (found, target)]
    off = np.abs(rows[0] - rows[1]).sum(1).max() / np.abs(rows[1]).sum(1).max()
    if not off <= _PRECISE:
        raise ValueError(
            f"as changes of {solver} it is off by {off:.1g} in single precision; take a solver that predicts "
            f"{'data, such as ddim' if solver.prediction == 'noise' else 'noise, such as ipndm of order 1'}"
        )
