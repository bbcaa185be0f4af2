"""A diffusers pipeline as PyTorch functions: its own call, from a state to the prediction for its scheduler.

No pipeline family is special here. The call runs with a stand-in for the scheduler, which has one timestep and ends the
call with the prediction that it gets. So guidance, packing, time ids and the scale of the timestep are the pipeline's
own. Without a timestep the loop is empty, and the state goes to the decoder. Prompts are encoded once: the output of
`encode_prompt` is kept and returned for the samples of a batch.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch.overrides import TorchFunctionMode

from ld3_jax import extras
from ld3_jax.interop import pipeline_files
from ld3_jax.interop.encoded_prompts import Encoded
from ld3_jax.interop.pipeline_noise import BY_HAND

_NOT_NEEDED = ("safety_checker", "watermark")  # components after the decoder
# Set here, and not by users.
_OURS = ("prompt", "latents", "class_labels", "batch_size", "num_inference_steps", "timesteps", "sigmas", "mu")
_OURS += ("output_type", "return_dict", "generator", "eta", "callback_on_step_end", "callback", "callback_steps")
_OURS += ("num_images_per_prompt", "num_videos_per_prompt", "callback_on_step_end_tensor_inputs")


class _Captured(Exception):
    """Ends a pipeline's call with the predictions that its scheduler got at each step, and the state."""

    def __init__(self, outputs: list[torch.Tensor], sample: torch.Tensor):
        super().__init__()
        self.outputs, self.sample = outputs, sample


class _StandIn:
    """A scheduler that leaves the state as it is, and ends the call after its last timestep.

    All other attributes come from the pipeline's own scheduler.
    """

    order, begin_index, init_noise_sigma = 1, 0, 1.0

    def __init__(self, of: Any, timesteps: torch.Tensor):
        self._of, self.timesteps, self.sigmas, self._outputs = of, timesteps, [0.0] * (len(timesteps) + 1), []

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_of"], name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Keep the present times: a learned solver also has its own times, however the pipeline would shift them."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        pass

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *_: Any,
        return_dict: bool = True,
        **__: Any,
    ) -> Any:
        self._outputs.append(model_output)
        if len(self._outputs) == len(self.timesteps):
            raise _Captured(self._outputs, sample)
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)


class _Noise(TorchFunctionMode):
    """Replace the first normal noise that is drawn by a given state, for pipelines that take no latents."""

    def __init__(self, state: torch.Tensor):
        super().__init__()
        self._left = [state]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._left.pop() if func is torch.randn and self._left else func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class Driven:
    """A pipeline's call with a user's options.

    Attributes:
        pipe: a copy of the pipeline, whose components are shared.
        options: keyword arguments of its call: size, guidance and so on.
        dtype: dtype of its latents.
        encoded: its text conditions, if it has any.
    """

    pipe: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    encoded: Encoded | None = None

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of its call."""
        return inspect.signature(_loop(self.pipe)).parameters

    @property
    def conditions(self) -> str:
        """What a sample depends on: "prompt", "class_labels", or "batch_size" if it depends on nothing."""
        return next(name for name in _CONDITIONS if name in self.takes)

    @property
    def _texts(self) -> set[str]:
        return {name for name, value in self.options.items() if "prompt" in name and isinstance(value, str)}

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """The prediction that the pipeline gives its scheduler.

        Args:
            x: (batch, ...) states, as the scheduler sees them: latents, packed if the pipeline packs them.
            timestep: a scalar, in units of the pipeline's training steps; it may be fractional.
            cond: condition of each sample, as in `Encoded.cond`, or class labels.
        """
        return self.steps(x, timestep.reshape(1), cond)[0]

    def steps(self, x: torch.Tensor, timesteps: torch.Tensor, cond: Any = None) -> list[torch.Tensor]:
        """The predictions at each of several steps from the same state."""
        outputs, _ = self._called(timesteps, len(x), cond, x.to(self.dtype))
        # A batch that is doubled for guidance has the same in both halves; a variance may follow the prediction.
        return [output[: len(x), : x.shape[1]].to(x.dtype) for output in outputs]

    def decode(self, x: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """Images (batch, height, width, channels) in [-1, 1] of states without noise; for a video its middle frame."""
        images, _ = self._called(x.new_zeros(0), len(x), cond, x.to(self.dtype), "pt")
        frame = images[:, images.shape[1] // 2] if images.ndim == 5 else images
        return frame.movedim(1, -1).to(x.dtype) * 2 - 1

    def first(self, timestep: float, cond: Any, count: int = 1) -> torch.Tensor:
        """A state that the pipeline draws by itself, with its shape and dtype."""
        at = torch.tensor([timestep], device=self.pipe._execution_device)
        with torch.no_grad():
            return self._called(at, count, cond)[1][:count]

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        """The output of `encode_prompt` for prompts, call by call. No network is called."""
        outputs, encode = [], self.pipe.encode_prompt

        def record(*args: Any, **options: Any) -> Any:
            outputs.append(encode(*args, **options))
            return outputs[-1]

        with torch.no_grad():
            arguments = self._arguments("latent", len(prompts), 0) | {"prompt": [*prompts]}
            _run(self.pipe, torch.zeros(0, device=self.pipe._execution_device), arguments, record)
        return outputs

    def _arguments(self, output_type: str, count: int, steps: int) -> dict[str, Any]:
        # Mochi divides by half of the steps.
        fixed = {"num_inference_steps": max(steps, 2), "output_type": output_type, "return_dict": False}
        # For a list of prompts some pipelines take one negative prompt, and all take as many as prompts.
        own = {name: [value] * count if name in self._texts else value for name, value in self.options.items()}
        return {name: value for name, value in fixed.items() if name in self.takes} | own

    def _called(
        self, timesteps: torch.Tensor, count: int, cond: Any, x: torch.Tensor | None = None, output_type: str = "latent"
    ) -> tuple[Any, Any]:
        arguments, drawn, encode = self._arguments(output_type, count, len(timesteps)), nullcontext(), None
        arguments |= _CONDITIONS[self.conditions](cond, count)
        if self.encoded is not None:
            given = iter(self.encoded.of(cond))
            encode = lambda *args, **options: next(given)  # noqa: E731
        if x is not None and "latents" in self.takes:
            arguments["latents"] = x
        elif x is not None:
            drawn = _Noise(x)
        with drawn:
            return _run(self.pipe, timesteps, arguments, encode)


_CONDITIONS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "prompt": lambda cond, count: {"prompt": [""] * count},
    "class_labels": lambda cond, count: {"class_labels": cond.tolist()},
    "batch_size": lambda cond, count: {"batch_size": count},
}


def _loop(pipe: Any) -> Callable[..., Any]:
    """A pipeline's call without torch.no_grad around it."""
    return inspect.unwrap(type(pipe).__call__)


def _run(pipe: Any, timesteps: torch.Tensor, arguments: dict[str, Any], encode: Any = None) -> tuple[Any, Any]:
    """What the call gives its scheduler, step by step, and the state; or its return value, and None."""
    own = copy.copy(pipe)  # the call sets attributes
    vars(own)["scheduler"] = _StandIn(pipe.scheduler, timesteps)
    if encode is not None:
        vars(own)["encode_prompt"] = encode
    try:
        return _loop(pipe)(own, **arguments)[0], None
    except _Captured as captured:
        return captured.outputs, captured.sample


def opened(folder: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Driven:
    """The pipeline in a folder, on the accelerator if there is one.

    Args:
        folder: as a pipeline's `save_pretrained` writes it.
        dtype: dtype of its networks.
        options: keyword arguments of its call.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no pipeline that can be loaded, or one that cannot be used; if an option is not one of
            its call's, or must not be set.
    """
    pipeline_files.require_whole(folder)
    extras.load("accelerate", "loading a pipeline of diffusers")  # some networks need it to load
    with naming(folder):
        pipe = pipeline_files.read(folder, dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    vars(pipe).update({name: None for name in _NOT_NEEDED if hasattr(pipe, name)})
    if hasattr(getattr(pipe, "scheduler", None), "replaced"):  # it was saved with a learned scheduler
        vars(pipe)["scheduler"] = pipe.scheduler.replaced()
    driven = Driven(pipe, dict(options))
    check(driven, folder)
    return driven


def check(driven: Driven, folder: str) -> None:
    """Refuse pipelines that cannot be used, and keywords that the call does not take."""
    kind, takes = type(driven.pipe).__name__, driven.takes
    if getattr(driven.pipe, "scheduler", None) is None:
        raise ValueError(f"{folder}: {kind} has no scheduler, whose place is taken here: {BY_HAND}")
    if not any(name in takes for name in _CONDITIONS):
        raise ValueError(f"{folder}: the call of {kind} takes none of {[*_CONDITIONS]}: {BY_HAND}")
    if driven.conditions == "prompt" and not hasattr(driven.pipe, "encode_prompt"):
        raise ValueError(f"{folder}: {kind} has no encode_prompt, by which text is encoded once: {BY_HAND}")
    allowed = [name for name in takes if name not in ("self", *_OURS)]
    if unknown := [name for name in driven.options if name not in allowed]:
        raise ValueError(f"network.options must be among {allowed} for {kind}, got {unknown}")
    required = [name for name in allowed if takes[name].default is takes[name].empty and takes[name].kind < 2]
    if missing := [name for name in required if name not in driven.options]:
        raise ValueError(f"{folder}: the call of {kind} needs {missing}: give it in network.options, or {BY_HAND}")


@contextmanager
def naming(folder: str) -> Iterator[None]:
    """Turn any error of a pipeline into one line with its folder."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{folder}: {text:.400}" if text else f"{folder}: {type(error).__name__}") from error
