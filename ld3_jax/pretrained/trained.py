"""Small images with classes: the networks that `experiments.pretrain` trains, one of which comes with this package."""

from pathlib import Path

import jax.numpy as jnp

from ld3_jax import denoisers
from ld3_jax.networks import transformer
from ld3_jax.pretrained import images
from ld3_jax.pretrained.model import DTYPES, OnProgress, Pretrained, Settings, register

_SHIPPED = {"fashion28": Path(transformer.__file__).with_name("fashion28.safetensors")}


@register("fashion28", "trained", settings=("file", "dtype", "guidance"))
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """A network from a file of `experiments.pretrain`; "fashion28" has one of its own where none is named."""
    if not settings.file and name not in _SHIPPED:
        raise ValueError("network.file must name the model.safetensors that experiments.pretrain wrote")
    file = Path(settings.file) if settings.file else _SHIPPED[name]
    network, params = transformer.read(file, DTYPES[settings.dtype])
    model, classes = transformer.model(network, params), network.module.label_dim
    return Pretrained(
        name,
        settings,
        model if settings.guidance == 1 else denoisers.guided(model, jnp.zeros(classes), settings.guidance),
        transformer.SCHEDULE,
        network.shape,
        display=images.rgb,
        draw_condition=images.one_hot(classes),
    )
