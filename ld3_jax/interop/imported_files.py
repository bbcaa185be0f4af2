"""Lists of times that others have published, from a name, a text file or LD3's own files; and LD3's pairs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax.grids import check_times, grid
from ld3_jax.learning import Discretization
from ld3_jax.learning.gaps import with_ends
from ld3_jax.networks import files
from ld3_jax.networks.lazy import some
from ld3_jax.published import PUBLISHED, SAME_END, Levels
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers.record import process_of_schedule
from ld3_jax.teacher import Pairs

_NUMBER = re.compile(r"[^\s,;\[\]()]+")


def read_times(name: str, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    """The times of a list.

    Noise levels are sigma / alpha, or sigma for flows; their logarithm is interpolated linearly. The last one may be 0,
    as in other programs, and stands for the noise schedule's own end; if it follows that end, t ends twice at t_min,
    which a solver with last_sigma=0 takes. LD3's files must have the wanted number of steps.

    Args:
        name: a published grid, or a file: a text of numbers, or LD3's best_v1.pt or best_v2.pt.
        schedule: the model's.
        n_steps: how many steps are wanted.

    Raises:
        FileNotFoundError: if it is neither a grid nor a file.
        ValueError: if it is not such a list, or is for another noise schedule.
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


def read_pairs(path: Path, schedule: NoiseSchedule, count: int, like: Pairs) -> Pairs:
    """Pairs that LD3's gen_data.py wrote: a file for each, latent_000000.pt and so on, read without running code.

    A file holds `latent`, normal noise, and `img`, the teacher's sample, decoded, both (channels, height, width); and
    `c`, the condition, and `uc`, the unconditional one, or None. `uc` is not used: guidance is part of the model.

    Args:
        path: the folder, or one file.
        schedule: the model's; its prior scales the noise.
        count: how many pairs are wanted; as in LD3, the first ones by name.
        like: one pair of the model as shapes, without the axis of samples.

    Raises:
        FileNotFoundError: if there is neither a folder nor a file.
        ValueError: if there are fewer pairs, or a file is damaged, not such a pair, or of another shape than the
            model's; or if its `uc` equals its `c`, as in the published code for classes: then it was not guided.
    """
    if not path.exists():
        raise FileNotFoundError(f"no pairs {path}: neither a folder nor a file")
    found = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(found) < count:
        raise ValueError(f"{path}: {count} pairs are wanted, and it has {len(found)} files .pt")
    pairs = [_read_pair(file, like) for file in found[:count]]
    pairs = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *pairs)
    return pairs._replace(x_T=schedule.prior_scale * pairs.x_T)


def _read_pair(path: Path, like: Pairs) -> Pairs:
    state = files.read(path).state
    wanted = {"latent": like.x_T, "img": like.x_0} | ({} if like.cond is None else {"c": like.cond})
    if missing := sorted(wanted.keys() - state.keys()):
        raise ValueError(f"{path}: no pair of LD3's for this model: it lacks {missing} and holds {some(state)}")
    if like.cond is None and "c" in state:
        raise ValueError(f"{path}: has a condition c, and the model takes none")
    arrays = {name: np.asarray(state[name], np.float32) for name in wanted}
    arrays |= {name: np.moveaxis(arrays[name], 0, -1) for name in ("latent", "img") if arrays[name].ndim == 3}
    for name, one in wanted.items():
        if arrays[name].shape != (shape := getattr(one, "shape", one)):
            raise ValueError(f"{path}: its {name} is of shape {arrays[name].shape} here, the model's is {shape}")
    if "uc" in state and "c" in arrays and np.array_equal(state["uc"], arrays["c"]):
        raise ValueError(f"{path}: its c and uc are the same, so that its teacher was not guided")
    return Pairs(arrays["latent"], arrays["img"], arrays.get("c"))


def _read_levels(path: Path, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    words = _NUMBER.findall(path.read_text())
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"a list of noise levels is of numbers and commas alone ({error})") from error
    flow = process_of_schedule(schedule) == "flow"
    end = jnp.asarray(schedule.t_min)
    last = float(schedule.sigma(end) if flow else schedule.sigma(end) / schedule.alpha(end))
    steps = n_steps
    if values[-1:] == [0] and values[-2:-1] <= [last * (1 + SAME_END)]:  # the last step is from the model's end to 0
        values, steps = values[:-1], max(1, n_steps - 1)
    elif values[-1:] == [0]:
        values[-1] = last
    u = jnp.minimum(jnp.arange(n_steps + 1) / steps, 1.0)
    t = with_ends(Levels(tuple(values), flow).times(schedule, u).at[steps].set(schedule.t_min), schedule)
    return Discretization(t, t)


def _read_ld3(path: Path, schedule: NoiseSchedule, n_steps: int) -> Discretization:
    """LD3's `best_t_steps`: the n + 1 times, and then the n + 1 network's times."""
    state = files.read(path).state
    if "best_t_steps" not in state:
        raise ValueError(f"no file of LD3's: it lacks best_t_steps and holds {some(state)}")
    times = np.asarray(state["best_t_steps"], np.float32)
    if times.shape != (2 * (n_steps + 1),):
        raise ValueError(f"2 x {n_steps + 1} times are needed for {n_steps} steps, got an array of shape {times.shape}")
    ends = (schedule.t_max, schedule.t_min)
    if not np.allclose(times[[0, n_steps]], ends, rtol=1e-2, atol=1e-6):
        raise ValueError(f"its times must descend from {ends[0]:g} to {ends[1]:g}, got {times[: n_steps + 1].tolist()}")
    t, t_c = (with_ends(jnp.asarray(half), schedule) for half in np.split(times, 2))
    check_times(t, t_c, schedule, whole=True)
    return Discretization(t, t_c)
