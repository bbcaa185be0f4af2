"""Pre-trained models by name, ready to sample from and to learn for."""

from ld3_jax.pretrained.models import MODELS, Pretrained, Settings, load

__all__ = ["MODELS", "Pretrained", "Settings", "load"]
