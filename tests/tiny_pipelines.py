"""Pipelines of every family with a few thousand random weights, and a tokenizer of few words."""

import warnings

import diffusers
import tokenizers
import torch
import transformers

WORDS = ["a", "cat", "dog", "red", "moon", "on", "the", "old", "house", "with", "two", "birds"]
PROMPTS = ["a red cat", "the old dog on the moon", "two birds", "a house with a cat"]
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_WIDTH = 8
_CAUSAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _tokenizer(length=16):
    of_words = tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}, "<unk>"
    )
    fast = tokenizers.Tokenizer(of_words)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=length, **named)


def _clip(kind="CLIPTextModel"):
    config = transformers.CLIPTextConfig(
        vocab_size=16, hidden_size=_WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=_WIDTH, **_CAUSAL,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def _t5(kind="T5"):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=16, d_model=_WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _gemma():
    config = transformers.Gemma2Config(
        vocab_size=16, hidden_size=_WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, **_CAUSAL,
    )  # fmt: skip
    return transformers.Gemma2Model(config)


def _qwen():
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    of_text = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": rope, **_CAUSAL,
    }  # fmt: skip
    of_images = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=of_text, vision_config=of_images, vocab_size=16)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _vae(channels=4, **options):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=channels, sample_size=16, **blocks, **options
    )


def _unet(**options):
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=2,
        **blocks, **options,
    )  # fmt: skip


def _ddpm(pipeline="DDPMPipeline", **options):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, **blocks
    )
    return getattr(diffusers, pipeline)(unet, getattr(diffusers, pipeline.replace("Pipeline", "Scheduler"))(**options))


def _stable_diffusion(scheduler="PNDMScheduler", **options):
    scheduler = getattr(diffusers, scheduler)(**SD_BETAS, steps_offset=1, **options)
    return diffusers.StableDiffusionPipeline(
        _vae(),
        _clip(),
        _tokenizer(),
        _unet(cross_attention_dim=_WIDTH),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def _sdxl():
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + _WIDTH,
    }
    unet = _unet(cross_attention_dim=2 * _WIDTH, **added)
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1)
    return diffusers.StableDiffusionXLPipeline(
        _vae(scaling_factor=0.13025),
        _clip(),
        _clip("CLIPTextModelWithProjection"),
        _tokenizer(),
        _tokenizer(),
        unet,
        scheduler,
    )


_ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2}


def _dit():
    transformer = diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, norm_num_groups=2, **_ATTENTION)
    return diffusers.DiTPipeline(
        transformer, _vae(), diffusers.DDIMScheduler(clip_sample=False), {0: "tench", 1: "goldfish, carp"}
    )


def _pixart(kind):
    transformer = diffusers.PixArtTransformer2DModel(
        in_channels=4,
        out_channels=8,
        cross_attention_dim=8,
        caption_channels=_WIDTH,
        norm_num_groups=2,
        use_additional_conditions=False,
        **_ATTENTION,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", variance_type=None)
    return getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=_tokenizer(), text_encoder=_t5(), vae=_vae(), transformer=transformer, scheduler=scheduler
    )


def _sd3():
    transformer = diffusers.SD3Transformer2DModel(
        in_channels=4,
        out_channels=4,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=8,
        **_ATTENTION,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with_projection = "CLIPTextModelWithProjection"
    return diffusers.StableDiffusion3Pipeline(
        transformer,
        scheduler,
        _vae(shift_factor=0.06),
        _clip(with_projection),
        _tokenizer(),
        _clip(with_projection),
        _tokenizer(),
        _t16(),
        _tokenizer(),
    )


def _t16():
    config = transformers.T5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=2
    )
    return transformers.T5EncoderModel(config)


def _flux(guidance=True):
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_WIDTH, pooled_projection_dim=_WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        scheduler, _vae(shift_factor=0.1), _clip(), _tokenizer(), _t5(), _tokenizer(), transformer
    )


def _sana():
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=_WIDTH,
        sample_size=32,
    )  # fmt: skip
    two = {
        "block_types": "ResBlock",
        "block_out_channels": (8, 8),
        "layers_per_block": (1, 1),
        "qkv_multiscales": ((), ()),
    }
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in two.items()}
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.4,
        **both,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(_tokenizer(64), _gemma(), vae, transformer, scheduler)


def _wan(networks=1):
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[2.0] * 4
    )
    transformers = [
        diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=_WIDTH, freq_dim=16,
            ffn_dim=16, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        )
        for _ in range(networks)
    ]  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    boundary = 0.6 if networks == 2 else None
    return diffusers.WanPipeline(_tokenizer(), _t5("UMT5"), vae, scheduler, *transformers, boundary_ratio=boundary)


def _qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[2.0] * 4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9
    )
    return diffusers.QwenImagePipeline(scheduler, vae, _qwen(), _tokenizer(128), transformer)


def _stable_diffusion_2():
    ends = {"rescale_betas_zero_snr": True, "clip_sample": False}
    return _stable_diffusion("DDIMScheduler", prediction_type="v_prediction", **ends)


def _cosine():
    return _ddpm("DDIMPipeline", beta_schedule="squaredcos_cap_v2")


# Each family, and what its user would say in a call of a pipeline of this size.
SMALL = {"height": 16, "width": 16}
_PIXART = {"use_resolution_binning": False, "max_sequence_length": 8, "clean_caption": False}
_SANA = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 8}
FAMILIES = {
    "ddpm": (_ddpm, {}),
    "ddim": (_cosine, {}),
    "sd1": (_stable_diffusion, {"guidance_scale": 4.0}),
    "sd2": (_stable_diffusion_2, {"guidance_scale": 3.0, "guidance_rescale": 0.7}),
    "sdxl": (_sdxl, {"negative_prompt": "old"}),
    "dit": (_dit, {}),
    "pixart_alpha": (lambda: _pixart("Alpha"), _PIXART),
    "pixart_sigma": (lambda: _pixart("Sigma"), _PIXART),
    "sd3": (_sd3, {"max_sequence_length": 8, "guidance_scale": 1.0}),
    "flux": (_flux, {**SMALL, "max_sequence_length": 8, "guidance_scale": 2.5}),
    "sana": (_sana, _SANA | {"complex_human_instruction": None}),
    "wan": (_wan, {**SMALL, "num_frames": 5, "max_sequence_length": 8}),
    "wan22": (lambda: _wan(2), {**SMALL, "num_frames": 5, "max_sequence_length": 8}),
    "qwen": (_qwen_image, {**SMALL, "negative_prompt": " ", "max_sequence_length": 32}),
}


def build(family):
    """A pipeline of a family, and the keywords of its call."""
    torch.manual_seed(0)
    make, options = FAMILIES[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = make()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            for weight in component.parameters():  # weights that begin at 0 would hide what reaches the output
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    pipe.set_progress_bar_config(disable=True)
    return pipe, options
