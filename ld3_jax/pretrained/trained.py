"""Small images with classes: the networks that `experiments.pretrain` trains, one of which comes with this package."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

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

    def draw_condition(key: PRNGKeyArray, count: int, first: int = 0) -> Array:
        return jax.nn.one_hot(images.draw_classes(key, count, classes, first), classes)

    return Pretrained(
        name,
        settings,
        model if settings.guidance == 1 else denoisers.guided(model, jnp.zeros(classes), settings.guidance),
        transformer.SCHEDULE,
        network.shape,
        display=images.rgb,
        draw_condition=draw_condition,
    )
