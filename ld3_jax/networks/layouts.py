"""From the layouts of latent-diffusion files to the array names of the original files.

In the original files, a part's arrays begin with one of PREFIXES; in separate files they may lack it, or have the names
of the diffusers library.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ld3_jax.networks import lazy, weights
from ld3_jax.networks.autoencoder import Autoencoder
from ld3_jax.networks.lazy import Lazy
from ld3_jax.networks.unet import UNet

PREFIXES = {
    "unet": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "classes": "cond_stage_model.embedding.",
}
_HOLDS = {"lora": "a LoRA: ", "control": "a ControlNet: ", "decoder.": "a first stage: ", "blocks.": "a U-Net: "}


def from_diffusers_unet(state: Mapping[str, np.ndarray], unet: UNet) -> Lazy:
    """The arrays of diffusers' UNet2DModel or UNet2DConditionModel under the original names.

    Args:
        state: the arrays of `unet/*.safetensors`.
        unet: the network that they are for.

    Returns:
        The arrays, with names that begin with `model.diffusion_model.`; unknown names are kept after this prefix.
    """
    step, levels = unet.num_res_blocks + 1, len(unet.channel_mult)
    blocks = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for i in range(levels):
        for j in range(step):
            for position, kind in enumerate(("resnets", "attentions")):
                blocks[f"down_blocks.{i}.{kind}.{j}"] = f"input_blocks.{1 + i * step + j}.{position}"
                blocks[f"up_blocks.{i}.{kind}.{j}"] = f"output_blocks.{i * step + j}.{position}"
        blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * step}.0.op"
        position = 2 if unet.attends(levels - 1 - i) else 1
        blocks[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{(i + 1) * step - 1}.{position}"
    layers = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
        "to_q": "qkv.q",
        "to_k": "qkv.k",
        "to_v": "qkv.v",
    }
    return _join_qkv(_rename(state, PREFIXES["unet"], blocks, layers), unet)


def from_diffusers_autoencoder(state: Mapping[str, np.ndarray], autoencoder: Autoencoder) -> Lazy:
    """The arrays of diffusers' AutoencoderKL or VQModel under the original names; see `from_diffusers_unet`."""
    levels = len(autoencoder.channel_mult)
    blocks = {}
    for side in ("encoder", "decoder"):
        blocks[f"{side}.mid_block.resnets.0"] = f"{side}.mid.block_1"
        blocks[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        blocks[f"{side}.mid_block.resnets.1"] = f"{side}.mid.block_2"
        blocks[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    for i in range(levels):
        for j in range(autoencoder.num_res_blocks + 1):
            blocks[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            blocks[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{levels - 1 - i}.block.{j}"
        blocks[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        blocks[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{levels - 1 - i}.upsample"
    layers = {"conv_shortcut": "nin_shortcut", "to_q": "q", "to_k": "k", "to_v": "v"}
    return _rename(state, PREFIXES["autoencoder"], blocks, layers)


# Names that differ in both kinds of diffusers files; the second half are names of its first versions.
_DIFFUSERS_ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
_DIFFUSERS_ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "proj_out"}


def _rename(state: Mapping[str, np.ndarray], prefix: str, blocks: Mapping[str, str], layers: Mapping[str, str]) -> Lazy:
    """Exchange the beginning of each name, which is its block, and then the beginning of what follows."""

    def name_of(name: str) -> str:
        for old, new in blocks.items():
            if name.startswith(old + "."):
                layer = _swap(_swap(name.removeprefix(old + "."), _DIFFUSERS_ATTENTION), layers)
                return f"{new}.{layer}"
        return name

    return lazy.renamed(state, {prefix + name_of(name): name for name in state})


def _swap(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    return name


def _join_qkv(state: Lazy, unet: UNet) -> Lazy:
    """Self-attention's three projections as one, in the order of the heads that the U-Net expects."""

    def together(name: str) -> np.ndarray:
        q, k, v = (state[name.replace(".qkv.", f".qkv.{part}.")] for part in "qkv")
        heads = unet.heads(len(q))
        split = [part.reshape(heads, -1, *part.shape[1:]) for part in (q, k, v)]
        return np.stack(split, axis=0 if unet.new_attention_order else 1).reshape(-1, *q.shape[1:])

    alone = {name: name for name in state if ".qkv." not in name}
    threes = [name.replace(".qkv.q.", ".qkv.") for name in state if ".qkv.q." in name]
    return lazy.joined(lazy.renamed(state, alone), Lazy({name: partial(together, name) for name in threes}))


def original(part: str, shapes: PyTree, module: Any, state: Mapping[str, np.ndarray], what: str) -> Lazy:
    """A part's arrays under the original names, from the layout in which at least half of them are found.

    Args:
        part: one of PREFIXES.
        shapes: the shapes of its parameters.
        module: the network that they are for.
        state: the arrays of a file.
        what: name of the file, for messages.

    Raises:
        ValueError: if there is no such part or more than one, or only some of its arrays have moving averages.
    """
    prefix, wanted = PREFIXES[part], weights.names(shapes, PREFIXES[part])
    alone = tuple({name.removeprefix(prefix).partition(".")[0] + "." for name in wanted})
    original = {name: name for name in state if name.startswith(prefix)}
    longest = max((name.removeprefix(prefix) for name in wanted), key=len)
    copies = [name for name in state if f".{name}".endswith(f".{longest}")]
    if len(copies) > 1 and part in _OF_DIFFUSERS:
        raise ValueError(
            f"{what} holds {len(copies)} of this network, perhaps averaged ones: {lazy.some(copies)}; leave one"
        )
    for names in (original, {prefix + name: name for name in state if name.startswith(alone)}):
        if 2 * len(wanted & names.keys()) >= len(wanted) or part not in _OF_DIFFUSERS:
            return _averaged(names, state, what)
    converted = _OF_DIFFUSERS[part](state, module)
    if 2 * len(wanted & converted.keys()) >= len(wanted):
        return converted
    noun = "U-Net" if part == "unet" else "first stage (network.first_stage names the file of one)"
    holds = next((kind for sign, kind in _HOLDS.items() if any(sign in name for name in state)), "")
    raise ValueError(f"{what} holds no {noun} of this network, but {holds}{lazy.some(state)}")


_OF_DIFFUSERS = {"unet": from_diffusers_unet, "autoencoder": from_diffusers_autoencoder}


def _averaged(names: Mapping[str, str], state: Mapping[str, np.ndarray], what: str) -> Lazy:
    """The averages have the names of the arrays without `model.` and without dots. All must be there, or none."""
    averages = {new: "model_ema." + old.removeprefix("model.").replace(".", "") for new, old in names.items()}
    held = {new: average for new, average in averages.items() if average in state}
    others = any(name.startswith("model_ema.") for name in state.keys() - {"model_ema.decay", "model_ema.num_updates"})
    if len(held) < len(names) and (held or (others and PREFIXES["unet"] in min(names))):
        raise ValueError(
            f"{what}: has moving averages (model_ema.) of {len(held)} of {len(names)} arrays: {lazy.some(names)}"
        )
    return lazy.renamed(state, held or names)
