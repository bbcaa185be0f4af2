"""Any saved diffusers pipeline: text to image or video, class-conditional, unconditional."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ld3_jax import extras
from ld3_jax.networks import text
from ld3_jax.pretrained import images
from ld3_jax.pretrained.model import OnProgress, Pretrained, Settings, register


@register("diffusers", settings=("file", "options", "dtype", "prompts", "num_prompts", "decoded"))
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """The pipeline in a folder, as its own call runs it with these options."""
    options = _options(settings.options)
    loaded = extras.load("ld3_jax.interop.pipeline_network", "a pipeline of diffusers").load(
        settings.file,
        dtype=settings.dtype,
        options=options,
        conditions=lambda kind, pipe: _CONDITIONS[kind](settings, pipe),
        decoded=settings.decoded,
        on_progress=on_progress,
    )
    decoded: dict[str, Any] = {"display": lambda states, like: images.rgb(loaded.pictures(states), like)}
    if loaded.decode is not None:
        decoded = {"display": images.rgb, "decode": loaded.decode}
    return Pretrained(
        name,
        settings,
        loaded.model,
        loaded.schedule,
        loaded.shape,
        shown=6,
        draw_condition=None if loaded.cond is None else images.in_rounds(loaded.cond),
        differences=settings.decoded,
        seconds=loaded.seconds,
        **decoded,
    )


def _options(given: str) -> dict[str, Any]:
    """The keyword arguments of a pipeline's call, from JSON."""
    try:
        options = json.loads(given or "{}", object_pairs_hook=_once, parse_constant=_no_number)
    except ValueError as error:
        options, why = None, f" ({error})"
    else:
        why = ""
    if not isinstance(options, dict):
        raise ValueError(
            f"network.options must be an object of JSON, such as '{{\"height\": 512}}', got {given!r:.200}{why}"
        )
    # JSON has lists instead of tuples; a list of texts stays a list.
    return {
        name: tuple(one) if isinstance(one, list) and str not in map(type, one) else one
        for name, one in options.items()
    }


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _prompts(settings: Settings, pipe: Any) -> list[str]:
    if not settings.prompts:
        raise ValueError(f"{type(pipe).__name__} is conditioned on text: network.prompts must name a file, got ''")
    return text.read_prompts(Path(settings.prompts))[: settings.num_prompts or None]


def _labels(settings: Settings, pipe: Any) -> np.ndarray:
    """Labels of the classes in a file, by number or name; without a file, of all classes."""
    count, known = pipe.transformer.config.num_embeds_ada_norm, getattr(pipe, "labels", {})
    names = text.read_prompts(Path(settings.prompts)) if settings.prompts else [*map(str, range(count))]
    names = names[: settings.num_prompts or None] if settings.prompts else names
    numbers = [int(name) if name.isdecimal() else known.get(name, -1) for name in names]
    if unknown := [name for name, number in zip(names, numbers, strict=True) if not 0 <= number < count]:
        raise ValueError(
            f"{settings.prompts}: a line must be a number below {count} or a name of {type(pipe).__name__}.labels, "
            f"got {unknown[:3]}"
        )
    return np.asarray(numbers)


def _nothing(settings: Settings, pipe: Any) -> None:
    if settings.prompts:
        raise ValueError(
            f"{type(pipe).__name__} takes no prompts: network.prompts must be '', got {settings.prompts!r}"
        )


_CONDITIONS = {"prompt": _prompts, "class_labels": _labels, "batch_size": _nothing}
