"""Images of galaxies; the weights come with a package."""

import numpy as np

from ld3_jax.networks import galaxy
from ld3_jax.pretrained.model import OnProgress, Pretrained, Settings, register


@register(*galaxy.SURVEYS)
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """A network of one survey."""
    return Pretrained(name, settings, *galaxy.load(name), display=_stretched)


def _stretched(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    # The images are log(flux + 1) / 0.1, which is the stretch that galaxies are looked at in. Most pixels are sky.
    sky, bright = np.quantile(like, (0.5, 0.998))
    return (images - sky) / (bright - sky)
