"""Make a schedule.json of a list of times that someone else has found, to sample with, to judge, or to learn from.

python -m experiments.from_list --config=configs/hsc32.py --list=sigmas.txt --out=runs/theirs.json

The list is a published grid by its name (ays-sd15, gits-sd15, optimal-flux, ...), a text file of noise levels (sigma /
alpha, or of flows sigma, the last one perhaps 0), or LD3's best_v1.pt or best_v2.pt. Levels are interpolated to the
configuration's number of steps, their logarithm linearly. The result is one more schedule: `experiments.evaluate
--schedule=runs/theirs.json`, `experiments.train --config.learn.init=runs/theirs.json`.
"""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from ml_collections import config_flags

from experiments import common, models
from experiments.plan import Plan
from ld3_jax.disk import check_writable
from ld3_jax.grids import grid
from ld3_jax.learning import Discretization, Learned
from ld3_jax.networks import files
from ld3_jax.published import PUBLISHED, Levels
from ld3_jax.schedules import NoiseSchedule, RectifiedFlow

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration: its network and solver.", lock_config=True)
_LIST = common.path_flag("list", None, f"A file, or one of {', '.join(PUBLISHED)}.")
_OUT = common.path_flag("out", None, "The schedule.json to write.")
flags.mark_flags_as_required(["config", "list", "out"])

_NUMBER = re.compile(r"[^\s,;\[\]()]+")


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    solver, model = Plan.of(_CONFIG.value).solver, models.of_config(_CONFIG.value)
    found = read(_LIST.value, model.schedule, solver.n_steps)
    learned = Learned(solver, found, np.asarray(found.lam(model.schedule)), model.identity())
    learned.save(out, model.schedule)
    print(f"wrote {out}: {_LIST.value} as {solver.n_steps} steps of {solver}")


def read(name: str, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    """The times of a list; see above.

    Args:
        name: of a published grid, or of a file.
        schedule: the model's.
        n_steps: how many steps are wanted.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if it is no such list, or of another noise schedule.
    """
    if name in PUBLISHED:
        t = grid(name, schedule, n_steps)
        return Discretization(t, t)
    path = Path(name)
    try:
        return _read_ld3(path, schedule, n_steps) if path.suffix == ".pt" else _read_levels(path, schedule, n_steps)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: neither text nor a .pt") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def _read_levels(path: Path, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    words = _NUMBER.findall(path.read_text())
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"a list of noise levels is of numbers and commas alone ({error})") from error
    flow = isinstance(schedule, RectifiedFlow)
    if values and values[-1] == 0:  # programs end there; our last time is where the model's noise ends
        end = jnp.asarray(schedule.t_min)
        values[-1] = float(schedule.sigma(end) if flow else schedule.sigma(end) / schedule.alpha(end))
    t = Levels(tuple(values), flow).times(schedule, jnp.linspace(0.0, 1.0, n_steps + 1))
    return _between_ends(t, t, schedule)


def _read_ld3(path: Path, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    """LD3's `best_t_steps`: the n + 1 times, and then the n + 1 network's times."""
    state = files.read(path).state
    if "best_t_steps" not in state:
        raise ValueError(f"no file of LD3's: it lacks best_t_steps and holds {sorted(state)}")
    times = np.asarray(state["best_t_steps"], np.float32)
    if times.shape != (2 * (n_steps + 1),):
        raise ValueError(f"2 x {n_steps + 1} times are needed for {n_steps} steps, got an array of shape {times.shape}")
    t, t_c = jnp.asarray(times[: n_steps + 1]), jnp.asarray(times[n_steps + 1 :])
    ends = (schedule.t_max, schedule.t_min)
    if not (np.diff(t) < 0).all() or not np.allclose(t[jnp.asarray([0, -1])], ends, rtol=1e-2, atol=1e-6):
        raise ValueError(f"its times must descend from {ends[0]:g} to {ends[1]:g}, got {t.tolist()}")
    return _between_ends(t, t_c, schedule)


def _between_ends(
    t: Float[Array, "n_points"], t_c: Float[Array, "n_points"], schedule: NoiseSchedule
) -> Discretization:
    t = t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)
    return Discretization(t, jnp.clip(t_c, schedule.t_min, schedule.t_max))


if __name__ == "__main__":
    common.run(main)
