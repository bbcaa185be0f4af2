"""Runs a schedule.json without the rest of this library: plain Python, and PyTorch for samplers.

Copied to ComfyUI's `custom_nodes/ld3`, this folder is a custom node; put schedules in it or in ComfyUI's `models/ld3`.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):  # only the nodes need PyTorch
        return getattr(importlib.import_module(".comfyui", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
