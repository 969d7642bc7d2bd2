"""The tokenizer against transformers' CLIPTokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from pipeline.tokenizer import ClipTokenizer
from tests.support.checkpoints import make_checkpoint
from tests.support.strange_texts import strange_texts

DEMO = Path(__file__).parents[2] / "demo" / "small-things"
TOKENS = 40


def ours_and_theirs(checkpoint: Path) -> tuple[ClipTokenizer, Any]:
    spec = dataclasses.replace(read_spec(checkpoint).text, tokens=TOKENS)
    return ClipTokenizer(checkpoint, spec), CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")


def compare(checkpoint: Path, texts: list[str]) -> None:
    ours, theirs = ours_and_theirs(checkpoint)
    wanted = theirs(texts, padding="max_length", max_length=TOKENS, truncation=True).input_ids
    full = theirs(texts).input_ids
    for text, ids, whole in zip(texts, wanted, full, strict=True):
        got = ours.encode(text)
        assert got.ids.tolist() == ids, repr(text)
        assert got.cut == (len(whole) > TOKENS), repr(text)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("demo", 4000), ("sd1", 3000), ("sd2", 3000), pytest.param("demo", 20_000, marks=pytest.mark.exhaustive)],
)
def test_strange_texts(tmp_path: Path, kind: str, count: int) -> None:
    checkpoint = DEMO if kind == "demo" else make_checkpoint(tmp_path, kind=kind)
    texts = strange_texts(count, seed=len(kind))
    assert len({*texts}) > 0.9 * len(texts)
    compare(checkpoint, ["", *texts])


def test_the_whole_of_what_a_text_encoder_takes(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    tokenizer = ClipTokenizer(checkpoint, read_spec(checkpoint).text)
    assert tokenizer.capacity == 14
    vocab = json.loads((checkpoint / "tokenizer/vocab.json").read_text())
    start, end, red, apple = (vocab[word] for word in ("<|startoftext|>", "<|endoftext|>", "red</w>", "apple</w>"))
    short = tokenizer.encode("A  Red\tAPPLE")
    assert short.ids.dtype == np.int64
    assert short.ids.tolist() == [start, vocab["a</w>"], red, apple] + [end] * 12 and not short.cut
    fits = tokenizer.encode("red " * 14)
    assert fits.ids.tolist() == [start] + [red] * 14 + [end] and not fits.cut
    cut = tokenizer.encode("red " * 14 + "apple")
    assert cut.ids.tolist() == fits.ids.tolist() and cut.cut


def test_padding_is_the_models_own(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, kind="sd2")
    tokenizer = ClipTokenizer(checkpoint, read_spec(checkpoint).text)
    vocab = json.loads((checkpoint / "tokenizer/vocab.json").read_text())
    assert tokenizer.encode("").ids.tolist()[1:] == [vocab["<|endoftext|>"]] + [vocab["!"]] * 19


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v is not None}))


@pytest.mark.parametrize(
    ("config", "special"),
    [
        ({"pad_token": "<|endoftext|>"}, {"pad_token": "!"}),  # as Stable Diffusion 2 publishes it
        ({"pad_token": "!"}, {"pad_token": "<|endoftext|>"}),
        ({"pad_token": "!"}, {"pad_token": None}),
        ({"pad_token": None, "bos_token": None, "eos_token": None, "unk_token": None}, {"pad_token": None}),
        (
            {"bos_token": {"content": "<|startoftext|>", "__type": "AddedToken", "normalized": True}},
            {"bos_token": None},
        ),
        ({}, None),
    ],
)
def test_where_the_marks_are_named(
    tmp_path: Path, config: dict[str, object], special: dict[str, object] | None
) -> None:
    checkpoint = make_checkpoint(tmp_path)
    change(checkpoint / "tokenizer/tokenizer_config.json", **config)
    own = checkpoint / "tokenizer/special_tokens_map.json"
    if special is None:
        own.unlink()
    else:
        change(own, **special)
    compare(checkpoint, ["", "a red apple!", "!", *strange_texts(50, seed=1)])


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        ClipTokenizer(checkpoint, read_spec(checkpoint).text)
    return str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path)
    (checkpoint / "tokenizer" / name).unlink()
    assert str(checkpoint / "tokenizer" / name) in refusal(checkpoint)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    checkpoint = make_checkpoint(tmp_path)
    (checkpoint / "tokenizer" / name).write_bytes(content)
    assert str(checkpoint / "tokenizer" / name) in refusal(checkpoint)


@pytest.mark.parametrize("number", [-1, 10**6, 1.5, "7", None, True])
def test_token_numbers_are_those_of_the_encoder(tmp_path: Path, number: object) -> None:
    checkpoint = make_checkpoint(tmp_path)
    path = checkpoint / "tokenizer/vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"red</w>": number}))
    assert f"token 'red</w>' has number {number!r}; the text encoder takes 0 to " in refusal(checkpoint)


def test_a_mark_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    change(checkpoint / "tokenizer/special_tokens_map.json", pad_token="<|pad|>")
    assert "vocab.json lacks the token '<|pad|>'" in refusal(checkpoint)


def test_a_mark_that_is_no_text(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    change(checkpoint / "tokenizer/special_tokens_map.json", eos_token={"text": "<|endoftext|>"})
    assert "eos_token is not a token's text" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("merges", "words"),
    [
        ("r q\n", "vocab.json: its merges cannot be read, or do not fit its tokens"),
        ("one\n", "merges.txt cannot be read as merges: ['one'] is no pair"),
        ("a b c d\n", "merges.txt cannot be read as merges"),
    ],
)
def test_merges_of_another_vocabulary(tmp_path: Path, merges: str, words: str) -> None:
    checkpoint = make_checkpoint(tmp_path)
    (checkpoint / "tokenizer/merges.txt").write_text("#version: 0.2\n" + merges)
    assert words in refusal(checkpoint)
