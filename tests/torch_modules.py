"""Small PyTorch modules of the kinds that people sample with, with random weights: an entry for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch


class Entry(NamedTuple):
    """A module, how it is called, and a condition of one sample."""

    build: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    call: Callable[[torch.nn.Module], Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]]
    cond: Any = None


class _Doubled(torch.autograd.Function):
    """2 sin x with a backward pass that PyTorch cannot differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * torch.sin(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return 2 * torch.cos(x) * ct


class OwnFunction(torch.nn.Module):
    """A network with an autograd.Function of its own, which has neither forward mode nor second derivatives."""

    def __init__(self):
        super().__init__()
        self.into, self.out = torch.nn.Conv2d(4, 16, 3, padding=1), torch.nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x, t):
        return self.out(_Doubled.apply(self.into(x) + torch.sin(t).reshape(-1, 1, 1, 1)))


class PlainCNN(torch.nn.Module):
    """Convolutions, with the time as a channel."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(5, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 4, 3, padding=1)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x, t):
        return self.layers(torch.cat([x, t.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))


def _sample(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return lambda x, t, cond: module(x, 1000 * t.expand(len(x))).sample


def _text(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return lambda x, t, cond: module(x, 1000 * t.expand(len(x)), encoder_hidden_states=cond["text"]).sample


def _transformer(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return lambda x, t, cond: module(hidden_states=x, timestep=1000 * t.expand(len(x)), **cond).sample


def _pixart(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    more = {"resolution": None, "aspect_ratio": None}
    return lambda x, t, cond: module(x, timestep=1000 * t.expand(len(x)), added_cond_kwargs=more, **cond).sample


def _flux(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    images = torch.tensor([[0.0, i, j] for i in range(4) for j in range(4)])
    ids = {"img_ids": images, "txt_ids": torch.zeros(3, 3)}
    return lambda x, t, cond: module(hidden_states=x, timestep=t.expand(len(x)), **ids, **cond).sample


def _classes(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return lambda x, t, cond: module(x, 1000 * t.expand(len(x)), class_labels=cond).sample


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
_UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
_UNET |= {"in_channels": 4, "out_channels": 4}
_BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
_CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 8}
_CROSS |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}
_LATENT = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1, **_HEADS}
_TEXT = {"encoder_hidden_states": _normal(3, 8)}

MODULES = {
    "unet": Entry(lambda: diffusers.UNet2DModel(**_UNET, **_BLOCKS, attention_head_dim=4), (4, 8, 8), _sample),
    "conditional_unet": Entry(
        lambda: diffusers.UNet2DConditionModel(**_UNET, **_CROSS), (4, 8, 8), _text, {"text": _normal(3, 8)}
    ),
    "dit": Entry(
        lambda: diffusers.DiTTransformer2DModel(**_LATENT, out_channels=4, norm_num_groups=4, num_embeds_ada_norm=10),
        (4, 8, 8),
        _classes,
        np.int32(3),
    ),
    "sd3": Entry(
        lambda: diffusers.SD3Transformer2DModel(
            **_LATENT, out_channels=4, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=6
        ),
        (4, 8, 8),
        _transformer,
        _TEXT | {"pooled_projections": _normal(6)},
    ),
    "flux": Entry(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            **_HEADS,
            joint_attention_dim=8,
            pooled_projection_dim=6,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=True,
        ),
        (16, 4),
        _flux,
        _TEXT | {"pooled_projections": _normal(6), "guidance": np.float32(3.5)},
    ),
    "pixart": Entry(
        lambda: diffusers.PixArtTransformer2DModel(
            **_LATENT, out_channels=4, norm_num_groups=4, cross_attention_dim=16, caption_channels=8
        ),
        (4, 8, 8),
        _pixart,
        _TEXT,
    ),
    "sana": Entry(
        lambda: diffusers.SanaTransformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            **_HEADS,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
        ),
        (4, 8, 8),
        _transformer,
        _TEXT,
    ),
    "wan": Entry(
        lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            cross_attn_norm=True,
        ),
        (4, 1, 8, 8),
        _transformer,
        _TEXT,
    ),
    "plain": Entry(PlainCNN, (4, 8, 8), lambda module: lambda x, t, cond: module(x, t.expand(len(x)))),
    "own_function": Entry(OwnFunction, (4, 8, 8), lambda module: lambda x, t, cond: module(x, t.expand(len(x)))),
}


def build(name: str) -> torch.nn.Module:
    """The module of that name, with the same weights each time, none of them zero."""
    torch.manual_seed(0)
    module = MODULES[name].build().eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.2 if name in ("plain", "own_function") else 0.1)
    return module.requires_grad_(False)
