"""What outlives a run: learned schedules as JSON, the state of learning in Orbax checkpoints."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, PyTree

from ld3_jax.coefficients import Coefficients
from ld3_jax.curve import read_off
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Method
from ld3_jax.timesteps import GRIDS, TimestepParams

FORMAT = "ld3_jax schedule"
FORMAT_VERSIONS = (1, 2)  # 2 may have coefficients or a curve


@dataclass(frozen=True)
class LearnedSchedule:
    """A learned schedule: a solver and its times, for one model.

    Attributes:
        method: the solver with its static choices.
        t: n_steps + 1 descending times.
        t_c: the times given to the network.
        lam: half-log-SNR at t.
        model: what is needed to build the model again; its "digest" tells whether it is the same one.
        losses: figures measured when the schedule was learned.
        coefficients: learned changes of the solver's coefficients, the fields of `Coefficients` as lists; None if none.
        curve: a curve that times for other numbers of calls are read off, see `curve_record`; None if none.
    """

    method: Method
    t: tuple[float, ...]
    t_c: tuple[float, ...]
    lam: tuple[float, ...]
    model: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    coefficients: dict[str, list] | None = None
    curve: dict[str, Any] | None = None


def learned_schedule(
    method: Method,
    schedule: NoiseSchedule,
    t: Float[Array, "n_points"],
    t_c: Float[Array, "n_points"],
    change: Coefficients | None = None,
    *,
    model: dict[str, Any],
    losses: dict[str, Any],
    curve: dict[str, Any] | None = None,
) -> LearnedSchedule:
    """A `LearnedSchedule` from arrays; `lam` follows from t."""
    t_list, t_c_list, lam = (tuple(np.asarray(a).tolist()) for a in (t, t_c, schedule.lam(t)))
    lists = None if change is None else {name: np.asarray(leaf).tolist() for name, leaf in change._asdict().items()}
    return LearnedSchedule(method, t_list, t_c_list, lam, model, losses, lists, curve)


def curve_record(params: TimestepParams, grid: str, max_shift: float, nfes: Sequence[int]) -> dict[str, Any]:
    """A learned curve as JSON takes it: the arguments of `curve.read_off`, and the calls that it was learned for."""
    numbers = {"logits": np.asarray(params.logits).tolist(), "shifts": np.asarray(params.shifts).tolist()}
    return numbers | {"grid": grid, "max_shift": max_shift, "nfes": list(nfes)}


def for_calls(learned: LearnedSchedule, nfe: int, schedule: NoiseSchedule) -> LearnedSchedule:
    """The schedule for another number of network calls, read off the learned curve.

    Args:
        learned: a schedule.
        nfe: network calls.
        schedule: the model's noise schedule.

    Raises:
        ValueError: if the schedule has no curve and is for another number of calls, or the solver cannot take so few.
    """
    if nfe == learned.method.nfe:
        return learned
    if learned.curve is None:
        raise ValueError(
            f"the schedule is for {learned.method.nfe} network calls and has no curve to read {nfe} off; learn one "
            "with --config.learn.curve=True"
        )
    method = replace(learned.method, nfe=nfe)
    params = TimestepParams(jnp.asarray(learned.curve["logits"]), jnp.asarray(learned.curve["shifts"]))
    t, t_c = read_off(params, schedule, method.n_steps, learned.curve["grid"], learned.curve["max_shift"])
    return learned_schedule(method, schedule, t, t_c, model=learned.model, losses=learned.losses, curve=learned.curve)


def save_schedule(path: Path, learned: LearnedSchedule) -> None:
    """Write a learned schedule as JSON, atomically. The numbers read back bit for bit.

    Args:
        path: where to write, with suffix .json.
        learned: the schedule.

    Raises:
        OSError: if the disk does not take it; what stood at `path` before stays.
    """
    more = {"coefficients": learned.coefficients, "curve": learned.curve}
    more = {name: value for name, value in more.items() if value is not None}
    version = FORMAT_VERSIONS[bool(more)]
    record = {"format": FORMAT, "version": version, **dataclasses.asdict(learned.method)}
    record |= {"n_steps": learned.method.n_steps, "t": learned.t, "t_c": learned.t_c, "lam": learned.lam}
    record |= {"model": learned.model, "losses": learned.losses, **more}
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def load_schedule(path: Path) -> LearnedSchedule:
    """Read a learned schedule.

    Args:
        path: a file that `save_schedule` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is cut short, is no schedule, or holds impossible values; the message names what.
    """
    try:
        record = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON, perhaps cut short ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: not a schedule of ld3_jax")
    if record.get("version") not in FORMAT_VERSIONS:
        raise ValueError(
            f"{path}: schedule of version {record.get('version')}, this program reads {list(FORMAT_VERSIONS)}"
        )
    choices = [f.name for f in dataclasses.fields(Method)]
    missing = [key for key in (*choices, "t", "t_c", "lam", "model", "losses") if key not in record]
    if missing:
        raise ValueError(f"{path}: lacks {missing}")
    try:
        method = Method(**{name: record[name] for name in choices})
        t, t_c, lam = (tuple(0.0 + number for number in record[key]) for key in ("t", "t_c", "lam"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not len(t) == len(t_c) == len(lam) == method.n_steps + 1:
        raise ValueError(
            f"{path}: {len(t)} times, {len(t_c)} network times and {len(lam)} lam for {method.n_steps} steps"
        )
    if not all(a > b for a, b in itertools.pairwise(t)) or not all(map(math.isfinite, (*t, *t_c, *lam))):
        raise ValueError(f"{path}: the times must be finite and t must descend, got t = {list(t)}")
    change, curve = (record.get(name) if record["version"] > 1 else None for name in ("coefficients", "curve"))
    if record["version"] > 1 and change is None and curve is None:
        raise ValueError(f"{path}: lacks coefficients or a curve, which a schedule of version 2 has")
    if change is not None:
        _check_coefficients(change, method.nfe, path)
    if curve is not None:
        _check_curve(curve, path)
    return LearnedSchedule(method, t, t_c, lam, record["model"], record["losses"], change, curve)


def times(learned: LearnedSchedule) -> tuple[Float[Array, "n_points"], Float[Array, "n_points"]]:
    """t and t_c as arrays, for `solvers.sample`."""
    return jnp.asarray(learned.t), jnp.asarray(learned.t_c)


def coefficients(learned: LearnedSchedule) -> Coefficients | None:
    """The learned change of the solver's coefficients, for `solvers.sample`; None if there is none."""
    if learned.coefficients is None:
        return None
    arrays = {name: jnp.asarray(rows, jnp.float32) for name, rows in learned.coefficients.items() if rows}
    return Coefficients(**arrays)


def _check_coefficients(change: Any, nfe: int, path: Path) -> None:
    try:
        arrays = [np.asarray(change[name], float) for name in Coefficients._fields]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: coefficients must be the lists of {Coefficients._fields} ({error!r})") from error
    base, *histories = arrays if arrays[2].size else arrays[:2]
    whole = base.shape == (nfe,) and all(rows.ndim == 2 and len(rows) == nfe for rows in histories)
    if not whole or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{path}: coefficients must be finite and have {nfe} rows, one for each network call")


def _check_curve(curve: Any, path: Path) -> None:
    try:
        logits, shifts = (np.asarray(curve[name], float) for name in ("logits", "shifts"))
        m = logits.shape[-1]
        whole = logits.shape == (2, m) and shifts.shape == (2, m - 1) and curve["grid"] in GRIDS
        sound = whole and curve["max_shift"] >= 0 and np.isfinite(logits).all() and np.isfinite(shifts).all()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: a curve has logits, shifts, grid and max_shift ({error!r})") from error
    if not sound:
        raise ValueError(
            f"{path}: a curve has 2 x m finite logits, 2 x (m - 1) finite shifts, and a grid of {sorted(GRIDS)}"
        )


@contextmanager
def manager(directory: Path, keep: int = 2) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of the checkpoints in a directory; it keeps the latest few and closes, saving all, at the end.

    A process killed while saving leaves the earlier checkpoint whole.

    Args:
        directory: where the checkpoints lie; made if missing.
        keep: how many to keep.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as checkpoints:
        yield checkpoints


def save(checkpoints: ocp.CheckpointManager, step: int, state: PyTree, *, wait: bool = False) -> None:
    """Start saving a state; the program goes on meanwhile.

    Args:
        checkpoints: the manager.
        step: the state's step; if it is saved already, nothing happens.
        state: the state.
        wait: wait for an earlier save that is still under way; without, this state is passed over.
    """
    if step != checkpoints.latest_step() and (wait or not checkpoints.is_saving_in_progress()):
        checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, fresh: PyTree) -> PyTree:
    """The latest state.

    Args:
        checkpoints: the manager.
        fresh: a state of the same structure, shapes and dtypes, to return if there is no checkpoint.

    Raises:
        ValueError: if the checkpoint has another structure.
    """
    step = checkpoints.latest_step()
    if step is None:
        return fresh
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
    state = checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
    if jax.tree.structure(state) != jax.tree.structure(fresh):
        raise ValueError(f"checkpoint {checkpoints.directory / str(step)} holds a state of another structure")
    return state


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, even if the process is killed, it is whole: the old one or the new one.

    Raises:
        OSError: if the disk does not take it; the message names the file, and an earlier file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
