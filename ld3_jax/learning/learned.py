"""The learned schedule: a solver with times and coefficients. It samples, is judged, saved and loaded on its own."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ld3_jax.denoisers import Model
from ld3_jax.disk import numbers, read_json, write_atomically
from ld3_jax.grids import check_times
from ld3_jax.learning.discretization import Coefficients, Discretization
from ld3_jax.learning.student import Student, distances
from ld3_jax.ranges import CALLS, COUNT, FLAG, NUMBER, PATH, TEXT, check, entrance, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table, integrate, to_record
from ld3_jax.starts import starting_at
from ld3_jax.teacher import Pairs

FORMAT = "ld3_jax schedule"
VERSION = 6
# Files of earlier versions: 2 has coefficients, or a curve of another form, of which only its own times are read; 3 is
# for a manifold, where each part may have its own times; 4 ends at sigma 0; 5 has times for several numbers of calls; 7
# starts below full noise, and is written only for that, so that older programs can read all others.
WITH_START = 7
VERSIONS = (1, 2, 3, 4, 5, VERSION, WITH_START)
_KINDS = {"solver": TEXT, "nfe": CALLS, "order": COUNT, "variant": TEXT.or_none(), "lower_order_final": FLAG}
_KINDS |= dict.fromkeys(("model", "losses"), instance(dict))


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned discretisation of one model's ODE, for one solver.

    Attributes:
        solver: the solver with its number of network calls.
        discretization: its times, the network's own times, and the changes of its coefficients.
        lam: half-log-SNR at the times.
        model: what is needed to build the model again; its "digest" tells whether it is the same model, and "predicts"
            what its network predicts, one of `denoisers.PREDICTIONS`.
        losses: figures measured while learning, at least the validation loss of the start and of the learned schedule.
        t_start: the time t_s below full noise at which it starts; None: full noise, t_max.
    """

    solver: Solver
    discretization: Discretization
    lam: Float[np.ndarray, "n_points *parts"]
    model: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    t_start: float | None = None

    def __post_init__(self) -> None:
        parts = {"solver": Solver, "discretization": Discretization, "model": dict, "losses": dict}
        settle(self, {name: instance(of) for name, of in parts.items()} | {"t_start": NUMBER.or_none()})

    @property
    def t(self) -> Float[Array, "n_points *parts"]:
        """The times, descending from t_max, or from t_start, to t_min."""
        return self.discretization.t

    @property
    def t_c(self) -> Float[Array, "n_points *parts"]:
        """The times given to the network."""
        return self.discretization.t_c

    @property
    def coefficients(self) -> Coefficients | None:
        """The changes of the solver's coefficients, if they were learned."""
        return self.discretization.coefficients

    def table(self, schedule: NoiseSchedule) -> Table:
        """The learned solver as a table for `solvers.solve`.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
        """
        self.check_range(schedule)
        return self.discretization.table(self.range(schedule), self.solver)

    def range(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """The part of a noise schedule that it was learned for: from t_start on, or all of it.

        Raises:
            ValueError: if t_start is not in its range, or only the noise schedule starts below full noise.
        """
        if self.t_start is not None:
            return starting_at(schedule, self.t_start)
        if schedule.t_start is not None:
            raise ValueError(f"it was learned from full noise, and the noise schedule starts at {schedule.t_start:g}")
        return schedule

    @entrance(schedule=instance(NoiseSchedule))
    def sample(self, model: Model, schedule: NoiseSchedule, x_T: PyTree, cond: PyTree = None) -> PyTree:
        """Integrate from x_T to a sample. Pure: use it under jit, grad, vmap.

        Args:
            model: model(x, t, cond) -> noise prediction, the one that it was learned for.
            schedule: its noise schedule.
            x_T: states at t_max, scaled by `schedule.prior_scale`; with a t_start, states at that time (`noised`).
            cond: passed to the model.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
        """
        return integrate(model, schedule, self.solver, self.table(schedule), x_T, cond=cond)

    @entrance(student=instance(Student))
    def distances(self, student: Student, pairs: Pairs, *, batch_size: int = 25) -> Float[Array, "n"]:
        """How far its samples are from the teacher's: the student's loss of each pair.

        Args:
            student: model, loss and decoder; its own solver is not used.
            pairs: n held-out pairs.
            batch_size: the most samples to integrate at a time.
        """
        self.check_range(student.schedule)
        return distances(student._replace(solver=self.solver), self.discretization, pairs, batch_size=batch_size)

    def check_range(self, schedule: NoiseSchedule) -> None:
        """Refuse a noise schedule with another space, range or log-SNR, and network times outside it."""
        schedule = self.range(schedule)
        check_times(self.t, self.t_c, schedule, whole=True, to_zero=self.solver.to_zero)
        if self.coefficients is not None and bool(len(self.coefficients.base)) != self.solver.expands(schedule):
            raise ValueError(f"its coefficients were learned for states of another space than the states of {schedule}")
        with jax.ensure_compile_time_eval():
            lam = np.asarray(self.discretization.lam(schedule))
        if not np.allclose(lam, self.lam, rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"its half-log-SNR runs from {self.lam.min():g} to {self.lam.max():g}, that of the model at its times "
                f"from {lam.min():g} to {lam.max():g}: it was learned for another noise schedule"
            )

    @entrance(path=PATH, schedule=instance(NoiseSchedule).or_none())
    def save(self, path: str | Path, schedule: NoiseSchedule | None = None) -> None:
        """Write it as JSON, atomically; the numbers read back bit for bit.

        Args:
            path: the file.
            schedule: the noise schedule. With it the file also holds the solver's table, which other programs run
                (`ld3_jax.interop`), unless the states are not vectors.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
            OSError: if it cannot be written to the disk; an earlier file at `path` stays.
        """
        solver = dataclasses.asdict(self.solver)
        lists = {"t": self.t, "t_c": self.t_c, "lam": self.lam}
        start = {} if self.t_start is None else {"t_start": self.t_start}
        version = WITH_START if start else VERSION
        record = {"format": FORMAT, "version": version, "solver": solver.pop("name"), **solver, **start}
        record["n_steps"] = self.solver.n_steps
        record |= {name: np.asarray(array).tolist() for name, array in lists.items()}
        record |= {"model": self.model, "losses": self.losses}
        if self.coefficients is not None:
            change = self.coefficients._asdict()
            record["coefficients"] = {name: np.asarray(leaf).tolist() for name, leaf in change.items()}
        if schedule is not None and (table := self.plain_table(schedule)) is not None:
            record["table"] = table
        write_atomically(Path(path), (json.dumps(record, indent=2) + "\n").encode())

    def plain_table(self, schedule: NoiseSchedule) -> dict[str, Any] | None:
        """The table for other programs, as JSON; None unless the states are vectors with one time for all."""
        table, predicts = self.table(schedule), self.model.get("predicts")
        return to_record(table, self.range(schedule), self.t, self.solver, predicts)


@entrance(path=PATH)
def load(path: str | Path) -> Learned:
    """Read what `Learned.save` wrote.

    Args:
        path: a schedule.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is cut short, is not such a file, or holds impossible values; the message says which.
    """
    return _read(Path(path))[0]


@entrance(path=PATH, schedule=instance(NoiseSchedule))
def load_several(path: str | Path, schedule: NoiseSchedule) -> list[Learned]:
    """All that a file holds, for `interpolate`: one, or in version 5 perhaps one for each of several numbers of calls.

    Args:
        path: a schedule.json.
        schedule: the noise schedule of its model.

    Raises: see `load` and `Learned.check_range`.
    """
    own, others = _read(Path(path))
    own.check_range(schedule)
    solvers = [replace(own.solver, nfe=None).for_steps(len(one.t) - 1) for one in others]
    return [
        replace(own, solver=solver, discretization=one, lam=np.asarray(one.lam(schedule)))
        for solver, one in zip(solvers, others, strict=True)
    ] or [own]


def _read(path: Path) -> tuple[Learned, list[Discretization]]:
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: not a schedule of ld3_jax")
    version = record.get("version")
    if version not in VERSIONS or isinstance(version, bool):
        raise ValueError(f"{path}: schedule of version {version}, this program reads {list(VERSIONS)}")
    names = [f.name for f in dataclasses.fields(Solver)[1:]]
    if version not in (4, VERSION, WITH_START):
        record = {"last_sigma": None} | record
    if missing := [key for key in ("solver", *names, "t", "t_c", "lam", "model", "losses") if key not in record]:
        raise ValueError(f"{path}: lacks {missing}")
    if version == WITH_START and (numbers(start := record.get("t_start")).ndim or not np.isfinite(numbers(start))):
        raise ValueError(f"{path}: t_start must be the time at which it starts, got {record.get('t_start')!r:.80}")
    try:
        learned = _from_record(record, names)
        return learned, _of_curve(record.get("curve"), learned) if version == 5 else []
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_record(record: dict[str, Any], names: list[str]) -> Learned:
    check(record, _KINDS)
    if not isinstance(loss := record["losses"].get("loss", ""), str):
        raise ValueError(f"losses must have the name of a loss as their loss, got {loss!r}")
    version, choices = record["version"], {name: record[name] for name in names}
    if version < VERSION and Solver(record["solver"]).variant is None:
        choices["variant"] = None  # every file had "bh1"
    solver = Solver(record["solver"], **choices)
    t, t_c, lam = (_times(record[key], key, by_part=version > 2) for key in ("t", "t_c", "lam"))
    if not len(t) == len(t_c) == len(lam) == solver.n_steps + 1:
        raise ValueError(
            f"{len(t)} times, {len(t_c)} network times and {len(lam)} lam for {solver.n_steps} steps; with nfe = "
            f"{solver.nfe} there must be {solver.n_steps + 1} numbers in each of t, t_c and lam"
        )
    if not t.shape == t_c.shape == lam.shape:
        raise ValueError(f"t, t_c and lam must have one shape, got {t.shape}, {t_c.shape} and {lam.shape}")
    check_times(jnp.asarray(t), jnp.asarray(t_c), to_zero=solver.to_zero)
    change = record.get("coefficients") if version > 1 else None
    if version == 2 and change is None and "curve" not in record:
        raise ValueError("lacks coefficients or a curve, which a schedule of version 2 has")
    coefficients = None if change is None else _read_coefficients(change, solver, version)
    discretization = Discretization(jnp.asarray(t), jnp.asarray(t_c), coefficients)
    start = float(record["t_start"]) if version == WITH_START else None
    if start is not None and not np.allclose(t[:1], start, rtol=1e-5):
        raise ValueError(f"t must start at t_start, {start:g}, got {t[:1].tolist()}")
    return Learned(solver, discretization, np.asarray(jnp.asarray(lam)), record["model"], record["losses"], start)


def _of_curve(record: Any, own: Learned) -> list[Discretization]:
    """Times for several numbers of steps."""
    given = record if isinstance(record, dict) else {}
    t, t_c = (list(map(numbers, rows)) if isinstance(rows := given.get(name), list) else [] for name in ("t", "t_c"))
    ends = own.t[jnp.array([0, -1])]
    sound = {
        "t": bool(t) and all(_are_times(one, ends) and (np.diff(one) < 0).all() for one in t),
        "t_c": [one.shape for one in t_c] == [one.shape for one in t] and all(_are_times(one, ends) for one in t_c),
    }
    if wrong := [name for name in sound if not sound[name]]:
        raise ValueError(
            f"a curve has lists t and t_c of times for each number of steps, descending from {ends[0]:g} to "
            f"{ends[1]:g}; wrong here: {wrong}"
        )
    return [Discretization(jnp.asarray(one), jnp.asarray(other)) for one, other in zip(t, t_c, strict=True)]


def _are_times(array: np.ndarray, ends: Float[Array, "2"]) -> bool:
    sound = array.ndim == 1 and len(array) > 1 and np.isfinite(array).all()
    return bool(sound and np.allclose(array[[0, -1]], ends, rtol=1e-6))


def _times(values: Any, name: str, *, by_part: bool) -> np.ndarray:
    """A list of finite numbers, or of lists with a number for each part."""
    array = numbers(values)
    if not 1 <= array.ndim <= 1 + by_part or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values!r}")
    return array


def _read_coefficients(change: Any, solver: Solver, version: int) -> Coefficients:
    names = Coefficients._fields
    if not isinstance(change, dict) or not set(names) <= set(change):
        raise ValueError(f"coefficients must be the lists of {names}, got {change!r:.80}")
    with np.errstate(over="ignore"):  # a number that is too large becomes infinite and is refused
        arrays = [numbers(change[name]).astype(jnp.result_type(float)) for name in names]
    base, *histories = arrays if arrays[2].size else arrays[:2]
    shapes = [rows.shape for rows in histories]
    whole = all(len(shape) in (2, 3) and shape[0] == solver.nfe and shape[2:] == shapes[0][2:] for shape in shapes)
    of_vectors = version != 3 and (version < VERSION or base.shape != (0,))
    whole = whole and base.shape == ((solver.nfe, *shapes[0][2:]) if of_vectors else (0,))
    if not whole or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"coefficients must be finite and have {solver.nfe} rows, one for each network call")
    return Coefficients(jnp.asarray(base) if of_vectors else (), *map(jnp.asarray, histories))
