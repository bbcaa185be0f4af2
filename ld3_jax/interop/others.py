"""Lists of times that others have found, as times for a model: by name, of a text, of LD3's own files."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.grids import grid
from ld3_jax.learning import Discretization
from ld3_jax.networks import files
from ld3_jax.published import PUBLISHED, Levels
from ld3_jax.schedules import NoiseSchedule, RectifiedFlow

_NUMBER = re.compile(r"[^\s,;\[\]()]+")


def read_times(name: str, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    """The times of a list.

    Noise levels are sigma / alpha, or of flows sigma; they are interpolated, their logarithm linearly. The last one may
    be 0, as programs have it, and stands for the noise schedule's own end. LD3's files must have the wanted number.

    Args:
        name: of a published grid, or of a file: a text of numbers, or LD3's best_v1.pt or best_v2.pt.
        schedule: the model's.
        n_steps: how many steps are wanted.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if it is no such list, or of another noise schedule.
    """
    path = Path(name)
    if name not in PUBLISHED and not path.exists():
        raise FileNotFoundError(f"no list {name}: it is neither a file nor one of {', '.join(PUBLISHED)}")
    try:
        if name in PUBLISHED:
            t = grid(name, schedule, n_steps)
            return Discretization(t, t)
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
