"""Long and weighted prompts, before any network."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import InvalidRequest
from pipeline.prompt import MOST_CHUNKS, read_prompts, weights_of
from pipeline.tokenizer import ClipTokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> ClipTokenizer:
    return ClipTokenizer(checkpoint.source, checkpoint.spec.text)  # 16 tokens: room for 14


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("(a)", [("a", 1.1)]),
        ("((a)) b", [("a", 1.21), (" b", 1)]),
        ("((a:1.3) b:1.2) c", [("a", 1.3), (" b", 1.2), (" c", 1)]),  # the inner number stands
        ("((a) b:1.2)", [("a", 1.32), (" b", 1.2)]),
        ("(a: 0.5 )", [("a", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:b)", [("a:b", 1.1)]),
        (r"a \(b\) \\ (c\):1.2)", [("a (b) \\ ", 1), ("c)", 1.2)]),
        (r"re\(d", [("re(d", 1)]),
        ("(a", [("(a", 1)]),
        ("a) b", [("a) b", 1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("()", []),
        ("", []),
    ],
)
def test_brackets(text: str, pieces: list[tuple[str, float]]) -> None:
    got = weights_of(text)
    assert [piece for piece, _ in got] == [piece for piece, _ in pieces]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in pieces])


def comfy(text: str, weight: float = 1.0) -> list[tuple[str, float]]:
    """ComfyUI's reading of balanced brackets (comfy/sd1_clip.py, token_weights), in our words: the oracle."""
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0 and place > start:
                pieces.append(text[start:place])
            start, depth = (place if depth == 0 else start), depth + 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                pieces.append(text[start : place + 1])
                start = place + 1
    pieces.append(text[start:])
    told = []
    for piece in filter(None, pieces):
        if not (piece.startswith("(") and piece.endswith(")")):
            told.append((piece, weight))
            continue
        inside, own = piece[1:-1], weight * 1.1
        words, colon, number = inside.rpartition(":")
        if colon and words:
            try:
                inside, own = words, float(number)
            except ValueError:
                inside = piece[1:-1]
        told += comfy(inside, own)
    return told


def test_random_balanced_brackets_are_comfyuis() -> None:
    draw = random.Random(3)

    def text(depth: int) -> str:
        parts = []
        for _ in range(draw.randint(1, 3)):
            if depth and draw.random() < 0.5:
                number = draw.choice(["", ":1.3", ":0.7", ":2"])
                parts.append(f"({text(depth - 1)}{number})")
            else:
                parts.append(draw.choice(["red ", "blue cat", " of", "x:y "]))
        return "".join(parts)

    def by_character(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
        return [(character, round(weight, 9)) for piece, weight in pieces for character in piece]

    for _ in range(500):
        prompt = text(3)
        assert by_character(weights_of(prompt)) == by_character(comfy(prompt)), prompt


@pytest.mark.parametrize("text", ["(a:11)", "(a:-10.5)", "(" * 30 + "a" + ")" * 30, "(" * 2000 + "a" + ")" * 2000])
def test_a_weight_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"a weight of the prompt is .*; it must be -10 to 10"):
        weights_of(text)


def test_a_plain_prompt_is_what_the_tokenizer_says(tokenizer: ClipTokenizer) -> None:
    for text in ("the red apple", "", "red " * 20, "(red:1.3)"):
        (prompt,) = read_prompts(tokenizer, [text])
        plain = tokenizer.encode(text)
        assert prompt.ids.tolist() == [plain.ids.tolist()] and prompt.cut == plain.cut
        assert (prompt.weights == 1).all()


def test_a_long_prompt_has_all_its_tokens_in_chunks(tokenizer: ClipTokenizer) -> None:
    text = "the red apple blue cat " * 8  # 40 words of one token each
    (prompt,) = read_prompts(tokenizer, [text], long=True)
    words = tokenizer.words(text)
    assert prompt.chunks == -(-len(words) // tokenizer.capacity) and not prompt.cut
    inside = [ids[1 : 1 + tokenizer.capacity] for ids in prompt.ids[:-1]]
    assert np.concatenate(inside).tolist() == words[: tokenizer.capacity * (prompt.chunks - 1)]
    assert (prompt.ids[:, 0] == prompt.empty[0]).all(), "each chunk has its own start mark"


def test_a_word_is_not_split_between_chunks(tokenizer: ClipTokenizer) -> None:
    word = tokenizer.words("xyz")
    assert 1 < len(word) < 8
    (prompt,) = read_prompts(tokenizer, ["red " * (tokenizer.capacity - 1) + "xyz"], long=True)
    assert prompt.chunks == 2
    assert prompt.ids[1, 1 : 1 + len(word)].tolist() == word


def test_what_does_not_fit_is_cut_and_told(tokenizer: ClipTokenizer) -> None:
    (prompt,) = read_prompts(tokenizer, ["red " * (tokenizer.capacity * MOST_CHUNKS + 1)], long=True)
    assert prompt.chunks == MOST_CHUNKS and prompt.cut


def test_prompt_and_negative_prompt_get_equal_chunks(tokenizer: ClipTokenizer) -> None:
    long, short = read_prompts(tokenizer, ["red " * (tokenizer.capacity + 1), "blue"], long=True)
    assert long.chunks == short.chunks == 2
    assert short.ids[1].tolist() == short.empty.tolist()


def test_weights_lie_on_their_words(tokenizer: ClipTokenizer) -> None:
    (prompt,) = read_prompts(tokenizer, ["red (blue cat:1.5) red"], weighted=True)
    assert prompt.weights[0, :6].tolist() == [1, 1, 1.5, 1.5, 1, 1]
    assert prompt.ids[0].tolist() == tokenizer.encode("red blue cat red").ids.tolist()
