"""Learn where a diffusion model's few sampling steps lie (LD3, arXiv:2405.15506), in JAX.

    schedule = ld3_jax.schedules.VPLinear()
    model = ld3_jax.to_noise(jax.tree_util.Partial(network, weights), schedule, "noise")
    x_T = schedule.prior_scale * jax.random.normal(key, (1000, 32, 32, 3))
    pairs = ld3_jax.make_pairs(model, schedule, x_T, choose=100)
    student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=5))
    learned = ld3_jax.fit(student, pairs, key)
    learned.save("schedule.json", schedule)
    x_0 = ld3_jax.load("schedule.json").sample(model, schedule, x_T[:16])

`network(weights, x, t, cond)` is any function; `ld3_jax.pretrained.load(name)` gives pre-trained networks.
"""

import importlib.util
from types import ModuleType

from ld3_jax import extras

if importlib.util.find_spec("jax"):  # ld3_jax.interop runs tables without
    from ld3_jax import batches, denoisers, grids, learning, losses, schedules, solvers
    from ld3_jax.denoisers import guided, to_noise
    from ld3_jax.grids import grid
    from ld3_jax.learning import (
        ByPart,
        Gaps,
        GaussNewton,
        GradientDescent,
        Learned,
        LevenbergMarquardt,
        Student,
        WithCoefficients,
        fit,
        interpolate,
        load,
        make_student,
    )
    from ld3_jax.solvers import SOLVERS, Solver, Table, make_table, sample, solve
    from ld3_jax.starts import noised, starting_at
    from ld3_jax.teacher import Pairs, Teacher, make_pairs

__version__ = "0.13.1"

# Some need an extra; the others take a second to load.
_ON_DEMAND = (
    *("baselines", "checkpoint", "comparison", "image_files", "interop", "metrics", "networks", "plots", "poses"),
    *("pretrained", "recording"),
)

__all__ = [
    "SOLVERS",
    "ByPart",
    "Gaps",
    "GaussNewton",
    "GradientDescent",
    "Learned",
    "LevenbergMarquardt",
    "Pairs",
    "Solver",
    "Student",
    "Table",
    "Teacher",
    "WithCoefficients",
    "batches",
    "denoisers",
    "fit",
    "grid",
    "grids",
    "guided",
    "interpolate",
    "learning",
    "load",
    "losses",
    "make_pairs",
    "make_student",
    "make_table",
    "noised",
    "sample",
    "schedules",
    "solve",
    "solvers",
    "starting_at",
    "to_noise",
]


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return extras.load(f"ld3_jax.{name}")
    if name in __all__:
        raise ImportError(f"ld3_jax.{name} needs jax: pip install ld3-jax")
    raise AttributeError(f"module 'ld3_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ON_DEMAND]
