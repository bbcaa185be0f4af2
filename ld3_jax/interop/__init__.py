"""Learned solvers in other programs: a loop for arrays of any library, diffusers, k-diffusion, ComfyUI, plain lists.
Also PyTorch modules as networks to learn for.

    table = interop.read("schedule.json")
    x_0 = interop.solve(table, network, x_T)                                     # PyTorch, NumPy, ...
    pipe.scheduler = interop.LearnedScheduler.from_file("schedule.json", like=pipe.scheduler)  # diffusers
    x = interop.sample_learned(model, x, sigmas, table=table)                    # k-diffusion
    network = interop.pytorch_network(module, (4, 64, 64))                       # network(x, t, cond), in JAX

Modules are imported on first use; the documentation says which program takes which form.
"""

from typing import Any

from ld3_jax import extras

_PLACES = {
    "LearnedScheduler": "diffusers",
    "SchedulerMixin": "diffusers",  # diffusers looks for it beside a saved pipeline's scheduler
    "sample_learned": "standalone.k_diffusion",
    "pytorch_network": "pytorch",
    "PlainTable": "standalone.table",
    "read": "standalone.table",
    "solve": "standalone.table",
}
_NAMES = {"PlainTable": "Table"}

__all__ = ["LearnedScheduler", "PlainTable", "pytorch_network", "read", "sample_learned", "solve"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ld3_jax.interop' has no attribute {name!r}")
    module = extras.load(f"ld3_jax.interop.{_PLACES[name]}", f"interop.{name}")
    return getattr(module, _NAMES.get(name, name))
