"""Text conditions of Stable Diffusion: prompts, embedded once by the published CLIP text encoder and kept as arrays.

The encoder runs in PyTorch, through the transformers library, before anything else; sampling and learning only need its
arrays.

Reference: Radford et al., arXiv:2103.00020 (CLIP); Rombach et al., arXiv:2112.10752, section 3.3.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ld3_jax import extras
from ld3_jax.disk import read_arrays, read_json, write_arrays

_TOKENS = 77
_BATCH = 32


class Embeddings(NamedTuple):
    """Prompts as conditions, and the empty prompt, which is the unconditional half of guidance."""

    prompts: Float[np.ndarray, "n 77 width"]
    empty: Float[np.ndarray, "77 width"]


def read_prompts(path: Path) -> list[str]:
    """Prompts from a file.

    Args:
        path: a .txt file with one prompt per line (blank lines are skipped), or the captions of MS-COCO, a .json file
            with the prompts under annotations[].caption.

    Returns:
        The prompts in the file's order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no prompts, or is another kind of file.
    """
    if (kind := path.suffix.lower()) not in (".json", ".txt", ""):
        raise ValueError(
            f"{path}: prompts are the lines of a .txt file, or MS-COCO's captions in a .json file, got {kind}"
        )
    try:
        if kind == ".json":
            lines = [annotation["caption"] for annotation in read_json(path)["annotations"]]
        else:
            lines = path.read_text(encoding="utf-8").replace("\ufeff", "").split("\n")  # editors' byte-order marks
            if any("\0" in line for line in lines):
                raise ValueError(f"{path}: not a text of UTF-8, but perhaps of UTF-16")
        prompts = [line.strip() for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text of UTF-8 ({error})") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no captions of MS-COCO, {{'annotations': [{{'caption': ...}}]}}") from error
    if re.match(r'[\[{]\s*["{]|<(!doctype|html)', "".join(prompts[:1]), re.IGNORECASE) and kind != ".json":
        raise ValueError(f"{path}: JSON or a web page, where prompts are the lines of a text: {prompts[0]:.80}")
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def embed(
    prompts: Sequence[str], encoder: Path, cache: Path, on_batch: Callable[[int, int], None] = lambda done, total: None
) -> Embeddings:
    """Embed prompts, or read them from the cache if the same encoder has embedded them before.

    An embedding is the last hidden state of the text encoder after its final layer norm, for 77 tokens: shorter prompts
    are padded, longer ones cut.

    Args:
        prompts: at least one.
        encoder: the folder of the text encoder and its tokenizer, openai/clip-vit-large-patch14 for Stable Diffusion 1;
            or text_encoder/ of diffusers, which has tokenizer/ beside it.
        cache: folder of the cached arrays; a file's name identifies the prompts and the encoder's files.
        on_batch: called after each batch with the number of prompts embedded and the total.

    Returns:
        The embeddings of the prompts and of the empty prompt, float32.

    Raises:
        FileNotFoundError: if the encoder's folder is missing or lacks its configuration or its tokenizer.
        ValueError: if the encoder's file lacks arrays.
        ImportError: if transformers or PyTorch is missing and the cache does not have the arrays.
    """
    tokenizer = _tokenizer(encoder)
    path = cache / f"text-{_key(prompts, dict.fromkeys((encoder, tokenizer)))}.npz"
    if path.exists():
        try:
            found = Embeddings(*read_arrays(path, Embeddings._fields))
            if found.prompts.shape != (len(prompts), *found.empty.shape):
                raise ValueError(f"{path} holds other arrays")
            return found
        except (ValueError, OSError) as error:
            logging.getLogger(__name__).warning("%s; the prompts are embedded again", error)
    hidden = _encode(["", *prompts], encoder, tokenizer, on_batch)
    embeddings = Embeddings(hidden[1:], hidden[0])
    write_arrays(path, embeddings._asdict())
    return embeddings


def _tokenizer(encoder: Path) -> Path:
    """The folder of the encoder's tokenizer: its own, or the one that diffusers puts beside it."""
    if not (encoder / "config.json").is_file():
        raise FileNotFoundError(
            f"{encoder} is not the folder of a text encoder, with config.json, the weights and the tokenizer in it; "
            "for Stable Diffusion 1 it is a copy of https://huggingface.co/openai/clip-vit-large-patch14"
        )
    folders = (encoder, encoder.parent / "tokenizer")
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return folder
    raise FileNotFoundError(
        f"no tokenizer (tokenizer.json, or vocab.json and merges.txt) in {' or '.join(map(str, folders))}"
    )


def _key(prompts: Sequence[str], folders: Iterable[Path]) -> str:
    """A digest of the prompts and of the encoder's files: their names, sizes and times, because they hold gigabytes."""
    stats = [(file.name, file.stat()) for folder in folders for file in sorted(folder.iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([list(prompts), files]).encode()).hexdigest()[:16]


def _encode(texts: Sequence[str], encoder: Path, vocabulary: Path, on_batch: Callable[[int, int], None]) -> np.ndarray:
    torch, transformers = (extras.load(name, "embedding text") for name in ("torch", "transformers"))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)
    transformers.logging.set_verbosity_error()  # else it lists the arrays of the file's image encoder
    model, info = transformers.CLIPTextModel.from_pretrained(encoder, local_files_only=True, output_loading_info=True)
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
