"""The folder of a saved diffusers pipeline: all its parts must be there, above all the weights."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ld3_jax.disk import read_json

_DRAWN = "newly initialized"  # transformers' words for missing weights, which it draws at random
_NAME = re.compile(r"^([\w.]+)\s+\|.*MISSING", re.MULTILINE)


def read(folder: str, dtype: torch.dtype) -> Any:
    """The pipeline, on the CPU.

    Args:
        folder: a folder that `require_whole` accepts.
        dtype: of its networks.

    Raises:
        ValueError: if weights are missing.
    """
    with _noticing() as said:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    missing = [name for text in said for name in _NAME.findall(text) or [text]]
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            missing += [f"{part}: {name}" for name, weight in module.named_parameters() if weight.is_meta]
    if missing:
        raise ValueError(f"its files lack {len(missing)} weights, such as {missing[:3]}")
    return pipe


@contextmanager
def _noticing() -> Iterator[list[str]]:
    """The messages of transformers about missing weights, for which it draws random ones."""
    said: list[str] = []
    logger, handler = logging.getLogger("transformers"), logging.Handler()
    handler.addFilter(lambda record: _DRAWN in record.getMessage() and bool(said.append(record.getMessage())))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.WARNING, logging.WARNING))
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def require_whole(folder: str) -> None:
    """Refuse anything that is not the folder of a pipeline, or lacks a part of it.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is not the folder of a pipeline, or lacks a part.
    """
    path = Path(folder)
    if not folder or not path.is_dir():
        raise FileNotFoundError(f"no folder {folder!r}: network.file must name that of a saved pipeline of diffusers")
    if not (path / "model_index.json").is_file():
        raise ValueError(f"{folder}: not the folder of a pipeline of diffusers, which has a model_index.json")
    if not isinstance(index := read_json(path / "model_index.json"), dict):
        raise ValueError(f"{folder}: its model_index.json must be an object, got {index!r:.80}")
    parts = [name for name, of in index.items() if name[0] != "_" and isinstance(of, list) and len(of) == 2 and of[0]]
    if missing := [name for name in parts if not (path / name).is_dir()]:
        raise ValueError(f"{folder}: lacks {missing}, which its model_index.json names")
