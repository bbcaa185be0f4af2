"""A diffusers pipeline as a model: its network, its decoder and its conditions, in JAX."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.utils import logging
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from ld3_jax import denoisers
from ld3_jax.interop.encoded_prompts import encoded
from ld3_jax.interop.pipeline_noise import Noise, noise
from ld3_jax.interop.pipelines import Driven, naming, opened
from ld3_jax.interop.pytorch import PyTorchNetwork, pytorch_network
from ld3_jax.schedules import NoiseSchedule

_TRIED = 0.617  # where a network is tried, between t_min and t_max: not at a whole timestep
_STEPS = 6  # steps to compare; guidance that skips layers does so in the second of this many steps
_SAME = 0.01  # relative; half precision rounds to 0.004
_NO_TEXT = "text_encoder"  # part of the names of components that are not needed once prompts are encoded


class Loaded(NamedTuple):
    """A pipeline as a model.

    Attributes:
        model: model(x, t, cond) -> eps.
        schedule: its noise schedule.
        shape: shape of one state, as the pipeline's scheduler sees it.
        cond: conditions with a leading axis of samples; None if there are none.
        pictures: pictures(states) -> images (n, height, width, channels) in [-1, 1], on the host.
        decode: decode(states) -> the same in JAX, with derivatives; None if it was not requested.
        seconds: the time of a network call for one sample.
    """

    model: denoisers.Denoiser
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    cond: PyTree
    pictures: Callable[[np.ndarray], np.ndarray]
    decode: Partial | None
    seconds: float


def load(
    folder: str,
    *,
    dtype: str,
    options: Mapping[str, Any],
    conditions: Callable[[str, Any], Any],
    decoded: bool,
    on_progress: Callable[[str, int, int], None],
) -> Loaded:
    """The pipeline in a folder.

    Args:
        folder: as a pipeline's `save_pretrained` writes it.
        dtype: dtype of its networks, by its name in PyTorch.
        options: keyword arguments of its call.
        conditions: conditions(kind, pipe) -> its prompts for "prompt", labels (n,) for "class_labels", otherwise None.
        decoded: whether `decode` is wanted.
        on_progress: called with the name of the current work, how much is done and how much there is.

    Raises:
        FileNotFoundError, ValueError: see `opened`, `noise` and `pytorch_network`; if the pipeline cannot be called
            with these options.
    """
    driven = opened(folder, getattr(torch, dtype), options)
    says, cond = noise(driven.pipe.scheduler), conditions(driven.conditions, driven.pipe)
    with naming(folder):
        if driven.conditions == "prompt":
            kept = encoded(driven.encode, cond, lambda done, total: on_progress("text", done, total))
            driven, cond = replace(driven, encoded=kept, pipe=_without_text(driven.pipe)), kept.cond
        one = jax.tree.map(lambda leaf: leaf[:1], cond)
        driven, shape, modules, seconds = _tried(driven, says, one)
    network, schedule = _network(driven, says, modules, shape, one), says.schedule
    model = denoisers.to_noise(network, schedule, says.prediction)
    decode = _decoder(driven, shape, one) if decoded else None
    return Loaded(model, schedule, shape, cond, Partial(_pictures, driven, one), decode, seconds)


def _network(
    driven: Driven, says: Noise, modules: list[torch.nn.Module], shape: tuple[int, ...], one: PyTree
) -> PyTorchNetwork:
    def call(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        with _quiet():
            return driven.predict(x, says.timestep(t), cond)

    like, name = jax.tree.map(lambda leaf: leaf[0], one), type(driven.pipe).__name__
    return pytorch_network(modules, shape, like, call=call, t=_between(says.schedule), name=name)


def _without_text(pipe: Any) -> Any:
    """The pipeline without its text encoders; calls may still read their configuration."""
    own, found = copy.copy(pipe), [name for name in pipe.components if _NO_TEXT in name]
    for name in found:
        module = getattr(pipe, name)
        if isinstance(module, torch.nn.Module):
            vars(own)[name] = SimpleNamespace(config=module.config, dtype=module.dtype)
    return own


def _tried(driven: Driven, says: Noise, one: PyTree) -> tuple[Driven, tuple[int, ...], list[torch.nn.Module], float]:
    """Network calls at both ends, because some pipelines switch networks in between.

    Returns:
        The pipeline with the dtype of its states, their shape, the modules that it uses, the seconds of a call.
    """
    cond, schedule = _tensors(driven, one), says.schedule
    first, at, last = (float(says.timestep(t)) for t in (schedule.t_max, _between(schedule), schedule.t_min))
    with _used(driven.pipe) as modules, torch.no_grad():
        state = driven.first(first, cond)
        driven = replace(driven, dtype=state.dtype)
        several = driven.steps(state, torch.tensor([at], device=state.device), cond)
        begun = time.monotonic()  # the first calls prepare what later calls share
        several += driven.steps(state, torch.full((_STEPS,), at, device=state.device), cond)
        outputs = torch.stack(several).float().cpu()
        seconds = (time.monotonic() - begun) / _STEPS
        driven.steps(state, torch.tensor([last], device=state.device), cond)
    if (outputs - outputs[0]).abs().max() > _SAME * outputs[0].abs().max():
        raise ValueError(
            f"what {type(driven.pipe).__name__} predicts depends on the number of a step or of all steps, and not on "
            f"its time alone: leave out what says so in network.options, {sorted(driven.options)}"
        )
    return driven, tuple(state.shape[1:]), modules, seconds


def _between(schedule: NoiseSchedule) -> float:
    return schedule.t_min + _TRIED * (schedule.t_max - schedule.t_min)


@contextmanager
def _used(pipe: Any) -> Iterator[list[torch.nn.Module]]:
    """The components of a pipeline that run in the block."""
    called, found = set(), []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, args: called.add(id(module)))
    try:
        yield found
    finally:
        hook.remove()
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    found += [part for part in parts if any(id(module) in called for module in part.modules())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings that a pipeline repeats at each call."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _tensors(driven: Driven, cond: PyTree, count: int = 1) -> PyTree:
    """The conditions of one sample, repeated for several."""
    device = driven.pipe._execution_device
    return jax.tree.map(lambda leaf: torch.as_tensor(np.repeat(leaf, count, 0)).to(device), cond)


def _pictures(driven: Driven, one: PyTree, states: np.ndarray) -> np.ndarray:
    """Images of states, one at a time."""
    images = []
    with _quiet(), torch.no_grad():
        for state in np.asarray(states, np.float32):
            x = torch.tensor(state[None], device=driven.pipe._execution_device)
            images.append(driven.decode(x, _tensors(driven, one)).float().cpu().numpy())
    return np.concatenate(images)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Sizes:
    """A decoder as a network whose output is shaped like its input: both are padded with zeros."""

    state: tuple[int, ...]
    image: tuple[int, ...]

    @property
    def both(self) -> int:
        """How many numbers both have after padding."""
        return max(math.prod(self.state), math.prod(self.image))


def _decoder(driven: Driven, shape: tuple[int, ...], one: PyTree) -> Partial:
    """The decoder with derivatives."""
    with _used(driven.pipe) as modules:
        image = _pictures(driven, one, np.zeros((1, *shape))).shape[1:]
    sizes = _Sizes(shape, image)

    def call(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        states = x[:, : math.prod(shape)].reshape(len(x), *shape)
        with _quiet():
            images = driven.decode(states, _tensors(driven, one, len(x))).flatten(1)
        return torch.nn.functional.pad(images, (0, sizes.both - images.shape[1]))

    network = pytorch_network(
        modules or [torch.nn.Identity().eval()],
        (sizes.both,),
        call=call,
        name=f"the decoder of {type(driven.pipe).__name__}",
    )
    return Partial(_decoded, sizes, network)


def _decoded(sizes: _Sizes, network: Callable[..., Array], states: Array) -> Array:
    flat = states.reshape(len(states), -1)
    filled = jnp.pad(flat, ((0, 0), (0, sizes.both - flat.shape[1])))
    images = network(filled, jnp.zeros(()))[:, : math.prod(sizes.image)]
    return images.reshape(len(states), *sizes.image)
