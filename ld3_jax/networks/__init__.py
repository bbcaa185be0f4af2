"""Networks in Flax, readers of published weights, and losses that need weights; modules are imported on first use."""

from types import ModuleType

from jaxtyping import PyTree

from ld3_jax import extras
from ld3_jax.disk import CACHE
from ld3_jax.losses import LOSSES, Loss


def _lpips(squared_error: Loss, targets: PyTree) -> Loss:
    from ld3_jax.networks import lpips  # needs Flax, which the names do not need

    return lpips.load(cache=CACHE)


def _inception(squared_error: Loss, targets: PyTree) -> Loss:
    from ld3_jax.networks import inception

    return inception.load_distance()


LOSSES |= {"lpips": _lpips, "inception": _inception}


def __getattr__(name: str) -> ModuleType:
    try:
        return extras.load(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
