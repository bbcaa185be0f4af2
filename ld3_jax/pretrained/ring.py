"""A ring of Gaussians in the plane, whose noise prediction is exact."""

from ld3_jax.networks import gaussian
from ld3_jax.pretrained.model import OnProgress, Pretrained, Settings, register
from ld3_jax.schedules import VPLinear


@register("ring")
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """Six Gaussians on a circle."""
    schedule, mixture = VPLinear(), gaussian.ring()
    model = gaussian.noise_model(mixture, schedule)
    return Pretrained(name, settings, model, schedule, mixture.mean.shape[1:], shown=100)
