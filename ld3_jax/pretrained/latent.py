"""Latent diffusion: unconditional, class-conditional, text-conditional."""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array

from ld3_jax import denoisers
from ld3_jax.disk import read_json
from ld3_jax.networks import files, latent, text
from ld3_jax.networks.latent import LatentDiffusion, Loaded
from ld3_jax.pretrained import download, images
from ld3_jax.pretrained.download import Source
from ld3_jax.pretrained.model import DTYPES, Draw, OnProgress, Pretrained, Settings, register
from ld3_jax.teacher import draw_noise

_TEXT_CACHE = Path("runs/text")
_LDM = "https://ommer-lab.com/files/latent-diffusion"
_HUB = "https://huggingface.co"
download.SOURCES |= {
    "lsun_bedrooms.zip": Source(f"{_LDM}/lsun_bedrooms.zip"),
    "cin256-v2.ckpt": Source(f"{_LDM}/nitro/cin/model.ckpt"),
    "sd-v1-4.ckpt": Source(
        f"{_HUB}/CompVis/stable-diffusion-v-1-4-original/resolve/main/sd-v1-4.ckpt",
        "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
    ),
    "v1-5-pruned-emaonly.safetensors": Source(
        f"{_HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors",
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    ),
    "2_rectified_flow_from_sd_1_5.bin": Source(
        f"{_HUB}/XCLiu/2_rectified_flow_from_sd_1_5/resolve/main/unet/diffusion_pytorch_model.bin"
    ),
    "instaflow_0_9B_from_sd_1_5.bin": Source(
        f"{_HUB}/XCLiu/instaflow_0_9B_from_sd_1_5/resolve/main/unet/diffusion_pytorch_model.bin"
    ),
}
_SETTINGS = ("file", "first_stage", "prediction", "dtype", "random_weights")


def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """A U-Net on latents, guided if it takes conditions, with the first stage that decodes them."""
    usual, dtype = latent.NETWORKS[name], DTYPES[settings.dtype]
    network = latent.as_trained(usual, files.Checkpoint("", {}, {}), name, settings.prediction)
    if settings.random_weights:
        network = latent.shrink(network)
        loaded = latent.from_random(network, dtype=dtype)
    else:
        _check_text(name, network, settings)
        read, path = download.read(settings.file, on_progress), Path(settings.file).resolve()
        of_diffusers = path.parent.parent / "scheduler" / "scheduler_config.json"
        if usual.prediction == "noise" and path.parent.name == "unet" and of_diffusers.is_file():
            if not isinstance(said := read_json(of_diffusers), dict):
                raise ValueError(f"{of_diffusers}: no scheduler's configuration, which is an object, got {said!r:.80}")
            read = read._replace(config={**said, **read.config})
        network = latent.as_trained(usual, read, settings.file, settings.prediction)
        first = settings.first_stage and (download.read(settings.first_stage, on_progress).state, settings.first_stage)
        loaded = latent.from_state(network, read.state, settings.file, first or None, dtype=dtype)
    draw_condition, uncond = _conditions(network, loaded, settings, on_progress)
    return Pretrained(
        name,
        settings,
        loaded.model if settings.guidance == 1 else denoisers.guided(loaded.model, uncond, settings.guidance),
        network.schedule,
        network.shape,
        shown=6,
        display=images.rgb,
        decode=loaded.decode,
        draw_condition=draw_condition,
    )


for _name, _network in latent.NETWORKS.items():
    _conditional = ("guidance",) if _network.context_shape else ()
    _of_text = ("prompts", "text_encoder", "num_prompts") if _conditional and not _network.classes else ()
    register(_name, settings=_SETTINGS + _conditional + _of_text)(load)


def _check_text(name: str, network: LatentDiffusion, settings: Settings) -> None:
    """Check that a text model has its prompts, before gigabytes are read."""
    of_text = network.context_shape is not None and not network.classes
    if of_text and not (settings.prompts and settings.text_encoder):
        raise ValueError(
            f"{name} is conditioned on text: network.prompts must name a file of prompts and "
            f"network.text_encoder the folder of their encoder, got {settings.prompts!r} and {settings.text_encoder!r}"
        )


def _conditions(
    network: LatentDiffusion, loaded: Loaded, settings: Settings, on_progress: OnProgress
) -> tuple[Draw | None, Array | None]:
    """How conditions are drawn, and the empty condition."""
    if loaded.embed is not None:
        embed, classes = loaded.embed, network.classes - 1  # the last one stands for none
        return (
            lambda key, count, first=0: embed(images.draw_classes(key, count, classes, first)),
            embed(jnp.array([classes]))[0],
        )
    if network.context_shape is None:
        return None, None
    if settings.random_weights:
        shape = network.context_shape
        return lambda key, count, first=0: draw_noise(key, count, shape, first), jnp.zeros(shape)
    prompts = text.read_prompts(Path(settings.prompts))[: settings.num_prompts or None]
    found = text.embed(
        prompts, Path(settings.text_encoder), _TEXT_CACHE, lambda done, total: on_progress("text", done, total)
    )
    return images.in_rounds(jnp.asarray(found.prompts)), jnp.asarray(found.empty)
