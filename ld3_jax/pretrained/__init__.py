"""Pre-trained models by name, ready to sample from and to learn for; importing this package registers its own.

Your own model is a function that is registered under a name, in any module:

    @pretrained.register("mine", settings=("file",))
    def mine(name, settings, on_progress):
        return pretrained.Pretrained(name, settings, model_of(settings.file), schedule, (32, 32, 3))
"""

from ld3_jax.poses import models  # noqa: F401  importing a family registers its models
from ld3_jax.pretrained import edm, galaxies, latent, pipelines, ring  # noqa: F401
from ld3_jax.pretrained.model import MODELS, Pretrained, Settings, load, register

__all__ = ["MODELS", "Pretrained", "Settings", "load", "register"]
