"""Text conditions of Stable Diffusion: prompts, embedded once by the published CLIP text encoder and kept as arrays.

The encoder runs in PyTorch, through the library transformers, before anything else; sampling and learning need its
arrays alone.

Reference: Radford et al., arXiv:2103.00020 (CLIP); Rombach et al., arXiv:2112.10752, section 3.3.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ld3_jax.disk import write_atomically

_TOKENS = 77
_BATCH = 32
_INSTALL = "pip install transformers torch"


class Embeddings(NamedTuple):
    """Prompts as conditions, and the empty prompt, which is the unconditional half of guidance."""

    prompts: Float[np.ndarray, "n 77 width"]
    empty: Float[np.ndarray, "77 width"]


def read_prompts(path: Path) -> list[str]:
    """Prompts from a file.

    Args:
        path: a text file with one prompt a line, blank lines aside, or the captions of MS-COCO, a .json file with the
            prompts under annotations[].caption.

    Returns:
        The prompts in the file's order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no prompts.
    """
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    if path.suffix == ".json":
        try:
            lines = [annotation["caption"] for annotation in json.loads(content)["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no captions of MS-COCO, {{'annotations': [{{'caption': ...}}]}}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def embed(
    prompts: Sequence[str], encoder: Path, cache: Path, on_batch: Callable[[int, int], None] = lambda done, total: None
) -> Embeddings:
    """Embed prompts, or take them from the cache if the same encoder has embedded them before.

    An embedding is the last hidden state of the text encoder after its final layer norm, for 77 tokens: shorter prompts
    are padded, longer ones cut.

    Args:
        prompts: at least one.
        encoder: the folder of the text encoder and its tokenizer, openai/clip-vit-large-patch14 for Stable Diffusion 1.
        cache: folder of the cached arrays; a file's name tells the prompts and the encoder's files.
        on_batch: called with the numbers of prompts embedded and to embed, after each batch.

    Returns:
        The embeddings of the prompts and of the empty prompt, float32.

    Raises:
        FileNotFoundError: if the encoder's folder is missing or lacks its configuration.
        ValueError: if the encoder's file lacks arrays.
        ImportError: if transformers or PyTorch is missing and the cache does not have the arrays.
    """
    path = cache / f"text-{_key(prompts, encoder)}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            return Embeddings(arrays["prompts"], arrays["empty"])
    hidden = _encode(["", *prompts], encoder, on_batch)
    embeddings = Embeddings(hidden[1:], hidden[0])
    content = io.BytesIO()
    np.savez(content, **embeddings._asdict())
    write_atomically(path, content.getvalue())
    return embeddings


def _key(prompts: Sequence[str], encoder: Path) -> str:
    """A digest of the prompts and of the encoder's files: their names, sizes and times, for they hold gigabytes."""
    if not (encoder / "config.json").is_file():
        raise FileNotFoundError(
            f"{encoder} is not the folder of a text encoder, with config.json, the weights and the tokenizer in it; "
            "for Stable Diffusion 1 it is a copy of https://huggingface.co/openai/clip-vit-large-patch14"
        )
    stats = [(file.name, file.stat()) for file in sorted(encoder.iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([list(prompts), files]).encode()).hexdigest()[:16]


def _encode(texts: Sequence[str], encoder: Path, on_batch: Callable[[int, int], None]) -> np.ndarray:
    try:
        import torch
        from transformers import CLIPTextModel, CLIPTokenizer, logging
    except ImportError as error:
        raise ImportError(f"text is embedded by the library transformers, once: {_INSTALL} ({error})") from error
    tokenizer = CLIPTokenizer.from_pretrained(encoder, local_files_only=True)
    logging.set_verbosity_error()  # the published file holds the image encoder, too, whose arrays would all be listed
    loaded: Any = CLIPTextModel.from_pretrained(encoder, local_files_only=True, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{encoder} lacks the arrays {', '.join(sorted(info['missing_keys']))}")
    model = model.float().eval()
    hidden = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        tokens = tokenizer(batch, padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden.append(model(tokens["input_ids"]).last_hidden_state.numpy())
        on_batch(min(start + _BATCH, len(texts)), len(texts))
    return np.concatenate(hidden)
