"""Text conditions, with a tiny random encoder in the published one's format."""

import json
import shutil
import sys

import numpy as np
import pytest

from ld3_jax.networks import text

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

PROMPTS = ["a cat", "cat a", "cat " * 100]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder as the published one: text and image encoder in one file, and the tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "ca",
        "cat</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    words = {"vocab_size": len(vocabulary), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(text_config={**width, **words}, vision_config={**width, "image_size": 32})
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_the_embeddings_are_the_encoders_last_hidden_states(encoder, tmp_path):
    calls = []
    prompts, empty = text.embed(PROMPTS, encoder, tmp_path, lambda done, total: calls.append((done, total)))
    model = transformers.CLIPModel.from_pretrained(encoder).eval()
    start, end, a, cat = 54, 55, 26, 53
    tokens = [[], [a, cat], [cat, a], [cat] * 75]
    ids = torch.tensor([[start, *ids] + [end] * (76 - len(ids)) for ids in tokens])
    with torch.inference_mode():
        expected = model.text_model(ids).last_hidden_state.numpy()
    assert prompts.dtype == empty.dtype == np.float32
    np.testing.assert_allclose(empty, expected[0], atol=1e-5)
    np.testing.assert_allclose(prompts, expected[1:], atol=1e-5)
    assert np.abs(prompts - empty).max((1, 2)).min() > 0.1
    assert calls == [(4, 4)]


def test_the_cache_serves_the_same_prompts_and_encoder_alone(encoder, tmp_path, monkeypatch):
    first = text.embed(PROMPTS, encoder, tmp_path)
    moved = shutil.copytree(encoder, tmp_path / "other")
    monkeypatch.setattr(text, "_encode", lambda texts, *_: np.zeros((len(texts), 77, 16), np.float32))
    np.testing.assert_array_equal(text.embed(PROMPTS, encoder, tmp_path).prompts, first.prompts)
    assert not text.embed(PROMPTS[::-1], encoder, tmp_path).prompts.any()
    (moved / "model.safetensors").write_bytes(b"another encoder")
    assert not text.embed(PROMPTS, moved, tmp_path).prompts.any()


def test_an_encoder_that_lacks_arrays_is_refused(encoder, tmp_path):
    import safetensors.numpy

    broken = shutil.copytree(encoder, tmp_path / "broken")
    state = safetensors.numpy.load_file(broken / "model.safetensors")
    name = "text_model.final_layer_norm.weight"
    del state[name]
    safetensors.numpy.save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"broken lacks the arrays .*final_layer_norm\.weight"):
        text.embed(PROMPTS, broken, tmp_path)


def test_without_the_library_the_error_says_what_to_install(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"^embedding text needs transformers: pip install 'ld3-jax\[torch\]'$"):
        text.embed(PROMPTS, encoder, tmp_path)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a text encoder"):
        text.embed(PROMPTS, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "a cat\n\n  a dog \n"),
        ("prompts", "\ufeffa cat\r\n\ufeffa dog"),
        ("captions.JSON", '\ufeff{"annotations": [{"caption": "a cat"}, {"caption": "a dog"}]}'),
        (
            "captions.json",
            '{"info": {}, "annotations": [{"id": 1, "caption": "a cat"}, {"id": 2, "caption": "a dog\\n"}]}',
        ),
    ],
)
def test_prompts_come_from_lines_or_captions(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert text.read_prompts(tmp_path / name) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.txt", " \n", "holds no prompts"),
        ("prompts.txt", "a\0 \0c\0", "perhaps of UTF-16"),
        (
            "prompts.jsonl",
            '{"prompt": "a cat"}',
            r"prompts\.jsonl: prompts are the lines of a \.txt file, or .* got \.jsonl",
        ),
        ("prompts.CSV", "prompt\na cat", r"got \.csv"),
        ("prompts.txt", '{"prompt": "a cat"}', "JSON or a web page"),
        ("prompts.txt", "<!DOCTYPE html>", "JSON or a web page"),
        ("captions.json", '{"annotations": []}', "holds no prompts"),
        ("captions.json", '[{"caption": "a cat"}]', "no captions of MS-COCO"),
        ("captions.json", "{", r"captions.json: not valid JSON"),
        ("captions.json", '{"annotations": [{"caption": 5}]}', "no captions of MS-COCO"),
        ("captions.json", "[1]", "no captions of MS-COCO"),
    ],
)
def test_a_file_without_prompts_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        text.read_prompts(tmp_path / name)


def test_the_tokenizer_of_diffusers_lies_beside_the_encoder(encoder, tmp_path):
    vocabulary, own = tmp_path / "pipeline" / "tokenizer", tmp_path / "pipeline" / "text_encoder"
    shutil.copytree(encoder, own)
    for file in ("vocab.json", "merges.txt"):
        (own / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer .* in .*text_encoder or .*tokenizer"):
        text.embed(PROMPTS, own, tmp_path)
    vocabulary.mkdir()
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(encoder / file, vocabulary)
    found = text.embed(PROMPTS, own, tmp_path)
    np.testing.assert_array_equal(found.prompts, text.embed(PROMPTS, encoder, tmp_path).prompts)
    assert np.abs(found.prompts[0] - found.prompts[1]).max() > 0.1


@pytest.mark.parametrize("content", [b"", b"PK", b"{}"])
def test_a_damaged_cache_is_named_and_made_again(content, encoder, tmp_path, caplog):
    first = text.embed(PROMPTS, encoder, tmp_path)
    (file,) = tmp_path.glob("text-*.npz")
    file.write_bytes(content)
    np.testing.assert_array_equal(text.embed(PROMPTS, encoder, tmp_path).prompts, first.prompts)
    assert str(file) in caplog.text


def test_prompts_that_are_no_text_are_named(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"a \xff cat")
    with pytest.raises(ValueError, match=r"prompts\.txt: not a text of UTF-8"):
        text.read_prompts(tmp_path / "prompts.txt")
