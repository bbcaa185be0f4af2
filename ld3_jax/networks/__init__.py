"""Networks in Flax, readers of published weights, and the losses that need weights."""

from jaxtyping import PyTree

from ld3_jax.disk import CACHE
from ld3_jax.losses import LOSSES, Loss


def _lpips(squared_error: Loss, targets: PyTree) -> Loss:
    from ld3_jax.networks import lpips  # Flax, which the names alone do not need

    return lpips.load(cache=CACHE)


def _inception(squared_error: Loss, targets: PyTree) -> Loss:
    from ld3_jax.networks import inception

    return inception.load_distance()


LOSSES |= {"lpips": _lpips, "inception": _inception}
