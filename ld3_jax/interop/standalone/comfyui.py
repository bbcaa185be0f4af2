"""ComfyUI nodes: a schedule.json as SAMPLER and as SIGMAS, for SamplerCustom and SamplerCustomAdvanced."""

import hashlib
from pathlib import Path
from typing import Any

import folder_paths  # ComfyUI's own
import torch

from .k_diffusion import sample_learned
from .table import Table, read

_FOLDER, _MODELS = Path(__file__).parent, Path(folder_paths.models_dir, "ld3")
folder_paths.add_model_folder_path("ld3", str(_MODELS))


class _Node:
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The schedules to choose from, in ComfyUI's models/ld3 and in this folder."""
        names = {*folder_paths.get_filename_list("ld3"), *(path.name for path in _FOLDER.iterdir())}
        tooltip = "A schedule.json in ComfyUI's models/ld3 or the node's folder; the same for sampler and sigmas."
        return {"required": {"schedule": (sorted(n for n in names if n.endswith(".json")), {"tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: Any, input_types: Any = None) -> bool | str:
        """Whether a schedule can be read at any path. A STRING from another node (input_types) is still None."""
        try:
            return schedule is None or bool(read(_path(schedule)))
        except (OSError, ValueError) as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, schedule: Any) -> str | float:
        """The content's digest, so that a replaced file is read again, or NaN, which equals nothing."""
        return float("nan") if schedule is None else hashlib.sha256(_path(schedule).read_bytes()).hexdigest()


class LearnedSigmas(_Node):
    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = (
        "The noise levels of a learned schedule; all of them go to Learned sampler of the same schedule. One that was "
        "learned for image to image starts at its own level: give a latent image, and no denoise."
    )
    RETURN_TYPES = ("SIGMAS",)

    def get(self, schedule: str) -> tuple[torch.Tensor]:
        return (torch.tensor(read(_path(schedule)).levels, dtype=torch.float32),)


class LearnedSampler(_Node):
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "The learned solver with its times and coefficients, for the model that it was learned for."
    RETURN_TYPES = ("SAMPLER",)

    def get(self, schedule: str) -> tuple[Any]:
        import comfy.samplers

        table = read(_path(schedule))
        sampler = comfy.samplers.KSAMPLER(_sample, extra_options={"table": table})
        # Whether the first state is pure noise. ComfyUI compares with the model's range, whose end may differ in the
        # last digits.
        sampler.max_denoise = lambda model_wrap, sigmas: table.process == "vp" and table.full_noise is None
        return (sampler,)


def _sample(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    table: Table,
) -> torch.Tensor:
    """`sample_learned` with the first state as in learning, and with the kept part of an image unchanged."""
    flow = table.process == "flow"
    if flow and table.prior_scale is not None:
        x = x * (table.prior_scale / table.levels[0])  # ComfyUI's flows start from sigma times noise
    found = sample_learned(model, x, sigmas, extra_args, callback, disable, table=table)
    mask, image = (extra_args or {}).get("denoise_mask"), getattr(model, "latent_image", None)
    if mask is None or image is None:
        return found
    # A last sigma above 0 leaves noise there, and learned coefficients may change an image.
    return torch.where(mask == 0, image * (table.grid_alpha[-1] if flow else 1.0), found)


def _path(schedule: Any) -> Path:
    own = _FOLDER / Path(str(schedule)).expanduser()
    found = own if own.is_file() else folder_paths.get_full_path("ld3", str(schedule))
    if found is None:
        raise ValueError(f"no schedule {schedule!r}: put a schedule.json into {_MODELS} or {_FOLDER}")
    return Path(found)


NODE_CLASS_MAPPINGS = {"LD3LearnedSampler": LearnedSampler, "LD3LearnedSigmas": LearnedSigmas}
NODE_DISPLAY_NAME_MAPPINGS = {"LD3LearnedSampler": "Learned sampler", "LD3LearnedSigmas": "Learned sigmas"}
