"""What was learned: a solver with its times and coefficients. It samples, is judged, saved and loaded on its own."""

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
from ld3_jax.learning import curve
from ld3_jax.learning.discretization import Coefficients, Discretization
from ld3_jax.learning.student import Student, distances
from ld3_jax.ranges import CALLS, COUNT, FLAG, PATH, TEXT, check, entrance, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, Table, integrate, plain
from ld3_jax.teacher import Pairs

FORMAT = "ld3_jax schedule"
# 2 has coefficients, or a curve of another form, of which its own times alone are read; 3 is of a manifold, where each
# part may have its own times; 4 ends at sigma 0; 5 has a curve.
VERSIONS = (1, 2, 3, 4, 5)
_KINDS = {"solver": TEXT, "nfe": CALLS, "order": COUNT, "variant": TEXT, "lower_order_final": FLAG}
_KINDS |= dict.fromkeys(("model", "losses"), instance(dict))


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned discretisation of one model's ODE, for one solver.

    Attributes:
        solver: the solver with its number of network calls.
        found: its times, the network's own times, and the changes of its coefficients.
        lam: half-log-SNR at the times.
        model: what is needed to build the model again; its "digest" tells whether it is the same one, and
            "predicts" what its network predicts, one of `denoisers.PREDICTIONS`.
        losses: figures measured while learning, at least those of the validation at the start and of what was learned.
        curve: times for several numbers of calls, from which those for others are interpolated; None if none.
    """

    solver: Solver
    found: Discretization
    lam: Float[np.ndarray, "n_points *parts"]
    model: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    curve: tuple[Discretization, ...] | None = None

    def __post_init__(self) -> None:
        parts = {"solver": Solver, "found": Discretization, "model": dict, "losses": dict}
        settle(self, {name: instance(of) for name, of in parts.items()})

    @property
    def t(self) -> Float[Array, "n_points *parts"]:
        """The times, descending from t_max to t_min."""
        return self.found.t

    @property
    def t_c(self) -> Float[Array, "n_points *parts"]:
        """The times given to the network."""
        return self.found.t_c

    @property
    def coefficients(self) -> Coefficients | None:
        """The changes of the solver's coefficients, if they were learned."""
        return self.found.coefficients

    def table(self, schedule: NoiseSchedule) -> Table:
        """All of it as a table for `solvers.solve`.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
        """
        self.check_range(schedule)
        return self.found.table(schedule, self.solver)

    @entrance(schedule=instance(NoiseSchedule))
    def sample(self, model: Model, schedule: NoiseSchedule, x_T: PyTree, cond: PyTree = None) -> PyTree:
        """Integrate from x_T to a sample. Pure: use it under jit, grad, vmap.

        Args:
            model: model(x, t, cond) -> noise prediction, the one that it was learned for.
            schedule: its noise schedule.
            x_T: states at t_max, scaled by `schedule.prior_scale`.
            cond: passed to the model.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
        """
        return integrate(model, schedule, self.solver, self.table(schedule), x_T, cond=cond)

    @entrance(student=instance(Student))
    def distances(self, student: Student, pairs: Pairs, *, batch_size: int = 25) -> Float[Array, "n"]:
        """How far it lands from the teacher: the student's loss of each pair.

        Args:
            student: model, loss and decoder; its own solver is not used.
            pairs: n held-out pairs.
            batch_size: the most samples to integrate at a time.
        """
        self.check_range(student.schedule)
        return distances(student._replace(solver=self.solver), self.found, pairs, batch_size=batch_size)

    @entrance(nfe=CALLS, schedule=instance(NoiseSchedule))
    def for_calls(self, nfe: int, schedule: NoiseSchedule) -> "Learned":
        """The same for another number of network calls, where a curve was learned; see `curve.between`.

        Raises:
            ValueError: if no curve was learned and nfe is another number, or the solver cannot take so few calls.
        """
        if nfe == self.solver.nfe:
            return self
        if self.curve is None:
            raise ValueError(
                f"it was learned for {self.solver.nfe} network calls and has no curve to read {nfe} off; learn a Curve "
                "(in a configuration: learn.curve=True)"
            )
        solver = replace(self.solver, nfe=nfe)
        found = curve.between(self.curve, schedule, solver)
        return replace(self, solver=solver, found=found, lam=np.asarray(found.lam(schedule)))

    def check_range(self, schedule: NoiseSchedule) -> None:
        """Refuse a noise schedule of another range or another log-SNR, and network times beyond it."""
        check_times(self.t, self.t_c, schedule, whole=True, to_zero=self.solver.to_zero)
        with jax.ensure_compile_time_eval():
            lam = np.asarray(self.found.lam(schedule))
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
            schedule: the noise schedule. With it the file holds the solver's table, too, which other programs run
                (`ld3_jax.interop`), unless the states are no vectors.

        Raises:
            ValueError: if the times do not span the range of the noise schedule.
            OSError: if the disk does not take it; what stood at `path` before stays.
        """
        solver = dataclasses.asdict(self.solver)
        lists = {"t": self.t, "t_c": self.t_c, "lam": self.lam}
        if not self.solver.to_zero:
            del solver["last_sigma"]
        record = {"format": FORMAT, "version": VERSIONS[0], "solver": solver.pop("name")} | solver
        record["n_steps"] = self.solver.n_steps
        record |= {name: np.asarray(array).tolist() for name, array in lists.items()}
        record |= {"model": self.model, "losses": self.losses}
        if self.coefficients is not None:
            change = self.coefficients._asdict()
            record["coefficients"] = {name: np.asarray(leaf).tolist() for name, leaf in change.items()}
        if self.curve is not None:
            record["curve"] = curve.to_record(self.curve)
        by_part = self.t.ndim > 1 or (self.coefficients is not None and not len(self.coefficients.base))
        needs = (True, self.coefficients is not None, by_part, self.solver.to_zero, self.curve is not None)
        record["version"] = max(version for version, needed in zip(VERSIONS, needs, strict=True) if needed)
        if schedule is not None and schedule.space.flat:
            record["table"] = plain(self.table(schedule), schedule, self.t, self.solver, self.model.get("predicts"))
        write_atomically(Path(path), (json.dumps(record, indent=2) + "\n").encode())


@entrance(path=PATH)
def load(path: str | Path) -> Learned:
    """Read what `Learned.save` wrote.

    Args:
        path: a schedule.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is cut short, is no such file, or holds impossible values; the message names what.
    """
    path = Path(path)
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: not a schedule of ld3_jax")
    version = record.get("version")
    if version not in VERSIONS or isinstance(version, bool):
        raise ValueError(f"{path}: schedule of version {version}, this program reads {list(VERSIONS)}")
    names = [f.name for f in dataclasses.fields(Solver)[1:]]
    if version != VERSIONS[3]:
        record = {"last_sigma": None} | record
    if missing := [key for key in ("solver", *names, "t", "t_c", "lam", "model", "losses") if key not in record]:
        raise ValueError(f"{path}: lacks {missing}")
    try:
        return _from_record(record, names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_record(record: dict[str, Any], names: list[str]) -> Learned:
    check(record, _KINDS)
    if not isinstance(loss := record["losses"].get("loss", ""), str):
        raise ValueError(f"losses must have the name of a loss as their loss, got {loss!r}")
    solver = Solver(record["solver"], **{name: record[name] for name in names})
    t, t_c, lam = (_times(record[key], key, by_part=record["version"] > 2) for key in ("t", "t_c", "lam"))
    if not len(t) == len(t_c) == len(lam) == solver.n_steps + 1:
        raise ValueError(
            f"{len(t)} times, {len(t_c)} network times and {len(lam)} lam for {solver.n_steps} steps; with nfe = "
            f"{solver.nfe} there must be {solver.n_steps + 1} numbers in each of t, t_c and lam"
        )
    if not t.shape == t_c.shape == lam.shape:
        raise ValueError(f"t, t_c and lam must have one shape, got {t.shape}, {t_c.shape} and {lam.shape}")
    check_times(jnp.asarray(t), jnp.asarray(t_c), to_zero=solver.to_zero)
    change = record.get("coefficients") if record["version"] > 1 else None
    if record["version"] == 2 and change is None and "curve" not in record:
        raise ValueError("lacks coefficients or a curve, which a schedule of version 2 has")
    coefficients = None if change is None else _read_coefficients(change, solver, flat=record["version"] != 3)
    found = Discretization(jnp.asarray(t), jnp.asarray(t_c), coefficients)
    several = curve.from_record(record.get("curve"), (t[0], t[-1])) if record["version"] == VERSIONS[4] else None
    return Learned(solver, found, np.asarray(jnp.asarray(lam)), record["model"], record["losses"], several)


def _times(values: Any, name: str, *, by_part: bool) -> np.ndarray:
    """A list of finite numbers, or one for each part."""
    array = numbers(values)
    if not 1 <= array.ndim <= 1 + by_part or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values!r}")
    return array


def _read_coefficients(change: Any, solver: Solver, *, flat: bool) -> Coefficients:
    names = Coefficients._fields
    if not isinstance(change, dict) or not set(names) <= set(change):
        raise ValueError(f"coefficients must be the lists of {names}, got {change!r:.80}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        arrays = [numbers(change[name]).astype(jnp.result_type(float)) for name in names]
    base, *histories = arrays if arrays[2].size else arrays[:2]
    shapes = [rows.shape for rows in histories]
    whole = all(len(shape) in (2, 3) and shape[0] == solver.nfe and shape[2:] == shapes[0][2:] for shape in shapes)
    whole = whole and base.shape == ((solver.nfe, *shapes[0][2:]) if flat else (0,))
    if not whole or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"coefficients must be finite and have {solver.nfe} rows, one for each network call")
    return Coefficients(jnp.asarray(base) if flat else (), *map(jnp.asarray, histories))
