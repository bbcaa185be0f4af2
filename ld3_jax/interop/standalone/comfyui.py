"""ComfyUI's nodes: a schedule.json as SAMPLER and as SIGMAS, for SamplerCustom and SamplerCustomAdvanced."""

from pathlib import Path
from typing import Any

import torch

from .k_diffusion import sample_learned
from .table import Table, read

_FOLDER = Path(__file__).parent
_CATEGORY = "sampling/custom_sampling"


class _Node:
    CATEGORY = _CATEGORY
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A path; a relative one is looked for in this folder."""
        return {"required": {"schedule": ("STRING", {"default": "schedule.json"})}}


class LearnedSigmas(_Node):
    """The sigmas that it was learned for, last one included."""

    RETURN_TYPES = ("SIGMAS",)

    def get(self, schedule: str) -> tuple[torch.Tensor]:
        return (torch.tensor(_read(schedule).levels, dtype=torch.float32),)


class LearnedSampler(_Node):
    """The solver with all that was learned."""

    RETURN_TYPES = ("SAMPLER",)

    def get(self, schedule: str) -> tuple[Any]:
        import comfy.samplers  # ComfyUI's own, there only inside of it

        return (comfy.samplers.KSAMPLER(sample_learned, extra_options={"table": _read(schedule)}),)


def _read(schedule: str) -> Table:
    return read(_FOLDER / schedule)


NODE_CLASS_MAPPINGS = {"LD3LearnedSampler": LearnedSampler, "LD3LearnedSigmas": LearnedSigmas}
NODE_DISPLAY_NAME_MAPPINGS = {"LD3LearnedSampler": "Learned sampler", "LD3LearnedSigmas": "Learned sigmas"}
