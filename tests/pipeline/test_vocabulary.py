"""A tokenizer's files in every form, against transformers' CLIPTokenizer of the same folder."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken, CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from pipeline.tokenizer import ClipTokenizer
from tests.support.checkpoints import make_checkpoint
from tests.support.strange_texts import strange_texts

ADDED = ["<toy>", "Zed", "blue cat", "🍎"]
TEXTS = ["", "a <toy> of zed", "ZED <TOY>apple zedzed", "a blue cat, bluecat 🍎🍎", "<toy><toy> <|endoftext|> zed!"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as transformers 4 wrote them."""
    return make_checkpoint(tmp_path / "folder") / "tokenizer"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps((read(path) if path.exists() else {}) | values))


def tokenizer(folder: Path, *, more: int = 9) -> ClipTokenizer:
    """Of an encoder with `more` rows than the vocabulary has."""
    text = read_spec(folder.parent).text
    return ClipTokenizer(folder.parent, dataclasses.replace(text, tokens=40, vocab_size=text.vocab_size + more))


def compare(folder: Path) -> None:
    ours, theirs = tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    for text in [*TEXTS, *strange_texts(300, seed=4)]:
        assert ours.words(text) == theirs(text, add_special_tokens=False).input_ids, repr(text)


def refusal(folder: Path, *, more: int = 9) -> str:
    with pytest.raises(CheckpointError) as caught:
        tokenizer(folder, more=more)
    message = str(caught.value)
    assert str(folder) in message and len(message) < 400
    return message


def saved(folder: Path, *tokens: str | AddedToken) -> None:
    """In place, by transformers 5: tokenizer.json and a config."""
    theirs: Any = CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens(list(tokens))
    for path in folder.iterdir():
        path.unlink()
    theirs.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("tokens", [[], ADDED], ids=["plain", "added"])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_tokenizer_json_alone(tmp_path: Path, kind: str, tokens: list[str]) -> None:
    folder = make_checkpoint(tmp_path, kind=kind) / "tokenizer"
    before = tokenizer(folder)
    saved(folder, *tokens)
    compare(folder)
    plain = strange_texts(300, seed=7)
    assert tokens or [before.encode(text).ids.tolist() for text in plain] == [
        tokenizer(folder).encode(text).ids.tolist() for text in plain
    ], "padding and marks included"


@pytest.mark.parametrize(
    "flags",
    [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": False}, {"special": True}],
    ids=str,
)
def test_flags_of_added_tokens(folder: Path, flags: dict[str, bool]) -> None:
    saved(folder, *(AddedToken(token, **flags) for token in ADDED))
    compare(folder)


def test_added_tokens_json(folder: Path) -> None:
    """Of transformers 4's tokenizers in Python."""
    first = len(read(folder / "vocab.json"))
    change(folder / "added_tokens.json", **{token: first + i for i, token in enumerate(ADDED)})
    compare(folder)


def test_added_tokens_decoder(folder: Path) -> None:
    """Of transformers 4.34 and later, which lists the marks, too; added_tokens.json says the same again."""
    vocab = read(folder / "vocab.json")
    first = len(vocab)
    decoder = {
        str(vocab["<|endoftext|>"]): {"content": "<|endoftext|>", "normalized": False, "special": True},
        **{str(first + i): {"content": token, "normalized": True, "lstrip": i == 1} for i, token in enumerate(ADDED)},
    }
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    compare(folder)
    change(folder / "added_tokens.json", **{token: first + i for i, token in enumerate(ADDED)})
    compare(folder)


def test_both_forms_of_one_vocabulary(folder: Path, tmp_path: Path) -> None:
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    saved(folder, *ADDED)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(old[name])
    compare(folder)
    (folder / "merges.txt").write_bytes(old["merges.txt"].replace(b"c a\n", b""))
    assert "tokenizer.json and " in refusal(folder) and "two different vocabularies" in refusal(folder)


def test_a_mark_that_was_added(folder: Path) -> None:
    saved(folder, AddedToken("<|pad|>", special=True, normalized=False))
    change(folder / "tokenizer_config.json", pad_token="<|pad|>")
    compare(folder)
    assert tokenizer(folder).encode("").ids[-1] == CLIPTokenizer.from_pretrained(folder).pad_token_id


def test_more_tokens_than_the_encoder_has(folder: Path) -> None:
    """The embeddings were not resized: the token would be another's row, or none."""
    size = len(read(folder / "vocab.json"))
    saved(folder, *ADDED)
    assert f"token '🍎' has number {size + 3}; the text encoder takes 0 to {size + 2}" in refusal(folder, more=3)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({"<toy>": 600}, "the added token '<toy>' has the number 600, and not the next one, 533"),
        ({"<toy>": 533, "<car>": 533}, "token '<car>' has the number 533 of another one"),
        ({"<toy>": "many"}, "an added token is {'content': '<toy>'}, with number 'many'"),
        ({"<toy>": -1}, "token '<toy>' has number -1; the text encoder takes 0 to"),
    ],
)
def test_numbers_that_are_none(folder: Path, added: dict[str, object], words: str) -> None:
    assert len(read(folder / "vocab.json")) == 533
    (folder / "added_tokens.json").write_text(json.dumps(added))
    assert words in refusal(folder, more=100)


def test_one_token_with_two_numbers(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<toy>": 533}')
    change(folder / "tokenizer_config.json", added_tokens_decoder={"534": {"content": "<toy>"}})
    assert "the added token '<toy>' has two numbers" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("type", "Unigram", "model.type is 'Unigram'; CLIP's tokenizer has 'BPE'"),
        ("dropout", 0.1, "model.dropout is 0.1"),
        ("end_of_word_suffix", "", "model.end_of_word_suffix is ''"),
        ("byte_fallback", True, "model.byte_fallback is True"),
        ("vocab", [["a", 0.0]], "model has no vocab, or no merges"),
        ("merges", None, "model has no vocab, or no merges"),
        ("merges", [["a"]], "['a'] is no pair"),
        ("merges", ["a b c"], "['a', 'b', 'c'] is no pair"),
        ("merges", ["q q"], "tokenizer.json: its merges cannot be read, or do not fit its tokens"),
    ],
)
def test_a_tokenizer_json_of_another_kind(folder: Path, key: str, value: object, words: str) -> None:
    saved(folder)
    whole = read(folder / "tokenizer.json")
    whole["model"][key] = value
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert words in refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 1}', '{"added_tokens": 1}'])
def test_a_malformed_tokenizer_json(folder: Path, content: str) -> None:
    saved(folder)
    (folder / "tokenizer.json").write_text(content)
    refusal(folder)


@pytest.mark.parametrize("added", [1, [1], [{"id": 533}], {"<toy>": 533}])
def test_a_malformed_list_of_added_tokens(folder: Path, added: object) -> None:
    saved(folder)
    change(folder / "tokenizer.json", added_tokens=added)
    refusal(folder)


@pytest.mark.parametrize("decoder", [[1], {"533": "<toy>"}, {"533": {"content": 1}}, {"a": {"content": "b"}}])
def test_malformed_added_tokens(folder: Path, decoder: object) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    refusal(folder)


@pytest.mark.parametrize("name", ["BertTokenizer", "XLMRobertaTokenizer", 3])
def test_a_tokenizer_of_another_class(folder: Path, name: object) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    assert f"tokenizer_class is {str(name)!r}; latentd does CLIP's" in refusal(folder)


def test_a_shorter_tokenizer_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """diffusers pads to it; latentd to what the encoder takes."""
    text = read_spec(folder.parent).text
    for longest, told in ((16, False), (10**30, False), (12, True), (None, False)):
        caplog.clear()
        change(folder / "tokenizer_config.json", model_max_length=longest)
        with caplog.at_level(logging.WARNING, "latentd.checkpoint"):
            ClipTokenizer(folder.parent, text)
        assert ("model_max_length is 12; texts have the text encoder's 16" in caplog.text) == told
