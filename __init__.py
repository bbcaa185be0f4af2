"""Makes a clone in ComfyUI's custom_nodes the node of ld3_jax/interop/standalone, which needs no JAX."""

import importlib
from pathlib import Path
from typing import Any

__path__ = [str(Path(__file__).parent / "ld3_jax" / "interop" / "standalone")]


def __getattr__(name: str) -> Any:
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        return getattr(importlib.import_module(".comfyui", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
