"""Learned times in the form that DiffDock's sampler takes.

Its `sampling(..., tr_schedule, rot_schedule, tor_schedule, ode=True)` makes Euler steps in t from each value to the
next, and from the last one to 0, x' = x + dt g^2 / 2 score with g^2 = 2 sigma^2 log(sigma_max / sigma_min). That is the
solver `euler` on `PoseNoise`, with a time for each part.

Reference: Corso et al., arXiv:2210.01776, and the public code of DiffDock.
"""

import dataclasses
from typing import Any

import numpy as np

from ld3_jax.interop.formats import FORMATS, Format, Source, Written, json_text
from ld3_jax.learning import Learned
from ld3_jax.noise_schedule import NoiseSchedule
from ld3_jax.poses.pose import PoseNoise


def schedules(learned: Learned, noise: NoiseSchedule) -> dict[str, Any]:
    """Arguments of DiffDock's sampler, and what is assumed of its model, as JSON takes them.

    Args:
        learned: times of the solver `euler`, without coefficients and network times of their own.
        noise: the noise of the model.

    Returns:
        inference_steps, tr_schedule, rot_schedule and tor_schedule (one value a step, 0 at the end left out), and under
        "assumes" the noise scales that the model must have been trained with, and options of its sampler.

    Raises:
        ValueError: if the sampler could not make these steps.
    """
    if not isinstance(noise, PoseNoise):
        raise ValueError(f"DiffDock's sampler moves poses, so the noise must be a PoseNoise, got {noise}")
    learned.check_range(noise)
    same_times = np.allclose(learned.t, learned.t_c, atol=1e-6)
    if learned.solver.name != "euler" or learned.coefficients is not None or not same_times:
        raise ValueError(
            "DiffDock's sampler makes Euler steps in t and tells its network the same times: learn with "
            f"solver.name=euler, solver.order=1 and learn.what=('times',), got {learned.solver}"
            + ("" if learned.coefficients is None else ", coefficients")
            + ("" if same_times else ", network times")
        )
    t = np.asarray(learned.t, float)
    parts = t if t.ndim > 1 else np.repeat(t[:, None], 3, 1)
    names = dict(zip(("tr", "rot", "tor"), (noise.translation, noise.rotation, noise.torsions), strict=True))
    times = {f"{name}_schedule": parts[:-1, i].tolist() for i, name in enumerate(names)}
    scales = {f"{name}_{key}": value for name, part in names.items() for key, value in dataclasses.asdict(part).items()}
    options = {"ode": True, "temp_sampling": 1.0, "initial_noise_std_proportion": -1.0}  # -1: start at the widest noise
    assumes = scales | options | {"sigma(t)": "sigma_min^(1 - t) sigma_max^t", "network": "gets each part's t"}
    return {"format": "diffdock", "inference_steps": len(t) - 1, **times, "assumes": assumes}


def _write(source: Source) -> Written:
    record = schedules(source.learned, PoseNoise())
    return Written(json_text(record), f"{record['inference_steps']} steps")


FORMATS["diffdock"] = Format(_write)
