"""The models of small images that EDM has published."""

from ld3_jax.networks import edm
from ld3_jax.pretrained import download, images
from ld3_jax.pretrained.download import Source
from ld3_jax.pretrained.model import DTYPES, OnProgress, Pretrained, Settings, register

_URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_FILES = (
    "edm-cifar10-32x32-uncond-vp.pkl",
    "edm-cifar10-32x32-uncond-ve.pkl",
    "edm-ffhq-64x64-uncond-vp.pkl",
    "edm-afhqv2-64x64-uncond-vp.pkl",
    "edm-imagenet-64x64-cond-adm.pkl",
)
download.SOURCES |= {file: Source(_URL + file) for file in _FILES}


@register(*edm.NETWORKS, settings=("file", "dtype", "random_weights"))
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """Karras et al.'s models, with classes if they have any."""
    network, dtype = edm.NETWORKS[name], DTYPES[settings.dtype]
    if settings.random_weights:
        network = edm.shrink(network)
        model, schedule, shape = edm.from_random(network, dtype=dtype)
    else:
        checkpoint = download.read(settings.file, on_progress)
        network = edm.preconditioned_as(network, checkpoint.config, settings.file)
        model, schedule, shape = edm.from_state(network, checkpoint.state, settings.file, dtype=dtype)
    classes = network.module.label_dim
    drawn = images.one_hot(classes) if classes else None
    return Pretrained(name, settings, model, schedule, shape, display=images.rgb, draw_condition=drawn)
