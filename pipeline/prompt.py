"""Prompts as people write them: longer than the encoder, with words in brackets that weigh more.

Both are asked for by a request. A long prompt is cut into chunks of the encoder's length between words, each with its
own start and end mark; their contexts are laid end to end. Brackets are ComfyUI's: `(words:1.3)` sets a weight,
`(words)` multiplies by 1.1, they nest, and `\\(`, `\\)` and `\\\\` are the characters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest
from pipeline.tokenizer import AnyTokenizer, ClipTokenizer

MOST_CHUNKS = 4  # of a long prompt: what does not fit is cut, and the answer says so
MOST_WEIGHT = 10.0
_BRACKET = 1.1  # of a pair of brackets without a number
_WHOLE = 8  # a word of fewer tokens is moved to the next chunk rather than split


@dataclass(frozen=True)
class Prompt:
    """Holds what the text encoder gets for one text. All chunks have the encoder's length."""

    # For two text encoders, which share nothing but the length: [chunks, 2, tokens], and [2, tokens].
    ids: NDArray[np.int64]  # [chunks, tokens]
    weights: NDArray[np.float32]  # [chunks, tokens]; 1 where nothing was asked for
    empty: NDArray[np.int64]  # [tokens]: a chunk without words, from which weighted tokens move away
    skip: int  # of the encoder's last layers
    cut: bool
    tokens: int = 0  # of the text, marks and padding left out
    zeros: bool = False  # its context is to be zeros: see read_prompts
    widths: tuple[int, ...] = (1,)  # of the text encoders' contexts, of two that lie side by side

    @property
    def chunks(self) -> int:
        return len(self.ids)

    def weighing(self, chunk: int) -> NDArray[np.float32]:
        """Return what weighs each number of a chunk's context, [tokens, 1] or for two text encoders [tokens, width]."""
        return np.repeat(np.atleast_2d(self.weights[chunk]), self.widths, axis=0).T


def read_prompts(
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    *,
    long: bool = False,
    weighted: bool = False,
    skip: int = 0,
    zero_negative: bool = False,
) -> list[Prompt]:
    """Read the texts of one request, padded with empty chunks to equal lengths.

    `zero_negative`: the second text, the negative prompt, has a context of zeros where it is empty, as SDXL was trained
    with. Errors: InvalidRequest for a weight.
    """
    read = [[_read(each, text, long, weighted, skip) for each in tokenizer.each] for text in texts]
    most = max(prompt.chunks for each in read for prompt in each)
    widths = tuple(each.width for each in tokenizer.each)
    prompts = [_beside([_padded(prompt, most) for prompt in each], widths) for each in read]
    if zero_negative and len(texts) == 2 and not texts[1]:
        prompts[1] = replace(prompts[1], zeros=True)
    return prompts


def _beside(prompts: Sequence[Prompt], widths: tuple[int, ...]) -> Prompt:
    """Put what two text encoders get of one text side by side."""
    if len(prompts) == 1:
        return prompts[0]
    ids, weights = (np.stack([getattr(each, name) for each in prompts], axis=1) for name in ("ids", "weights"))
    cut, tokens = any(each.cut for each in prompts), max(each.tokens for each in prompts)
    empty = np.stack([each.empty for each in prompts])
    return Prompt(ids, weights, empty, prompts[0].skip, cut, tokens, widths=widths)


def _read(tokenizer: ClipTokenizer, text: str, long: bool, weighted: bool, skip: int) -> Prompt:
    pieces = weights_of(text) if weighted else [(text, 1.0)]
    capacity = tokenizer.capacity
    if not long:
        tokens = [(token, weight) for piece, weight in pieces for token in tokenizer.words(piece)]
        chunks = [tokens[:capacity]]
        cut = len(tokens) > capacity
    else:
        # White space parts words for the tokenizer too, so tokens are those of the whole piece.
        words = [[(t, weight) for t in tokenizer.words(word)] for piece, weight in pieces for word in piece.split()]
        chunks = _chunks(words, capacity)
        cut = len(chunks) > MOST_CHUNKS
    chunks = chunks[:MOST_CHUNKS]
    ids = np.stack([tokenizer.framed([token for token, _ in chunk]) for chunk in chunks])
    weights = np.ones(ids.shape, np.float32)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : 1 + len(chunk)] = [weight for _, weight in chunk]  # after the start mark
    return Prompt(ids, weights, tokenizer.framed([]), skip, cut, sum(map(len, chunks)))


def _chunks(words: list[list[tuple[int, float]]], capacity: int) -> list[list[tuple[int, float]]]:
    chunks: list[list[tuple[int, float]]] = [[]]
    for word in words:
        if len(word) > capacity - len(chunks[-1]) and len(word) < _WHOLE and chunks[-1]:
            chunks.append([])
        while word:
            if len(chunks[-1]) == capacity:
                chunks.append([])
            free = capacity - len(chunks[-1])
            chunks[-1] += word[:free]
            word = word[free:]
    return chunks


def _padded(prompt: Prompt, chunks: int) -> Prompt:
    missing = chunks - prompt.chunks
    if not missing:
        return prompt
    ids = np.concatenate([prompt.ids, np.repeat(prompt.empty[None], missing, axis=0)])
    weights = np.concatenate([prompt.weights, np.ones((missing, ids.shape[1]), np.float32)])
    return Prompt(ids, weights, prompt.empty, prompt.skip, prompt.cut, prompt.tokens)


@dataclass
class _Piece:
    text: str
    weight: float = 1.0
    fixed: bool = False  # by a number: brackets further out do not change it


def weights_of(text: str) -> list[tuple[str, float]]:
    """Cut the text into pieces without brackets, each with its weight. A bracket without a partner is a character.

    Errors: InvalidRequest for a weight beyond +-MOST_WEIGHT.
    """
    open_groups: list[list[_Piece]] = [[]]
    for mark in re.findall(r"\\[()\\]|[()]|[^()\\]+|\\", text):
        if mark == "(":
            open_groups.append([])
        elif mark == ")" and len(open_groups) > 1:
            group = open_groups.pop()
            open_groups[-1] += _weighed(group)
        else:
            open_groups[-1].append(_Piece(mark[1] if len(mark) == 2 and mark[0] == "\\" else mark))
    pieces = open_groups[0]
    for group in open_groups[1:]:  # never closed
        pieces += [_Piece("("), *group]
    joined: list[tuple[str, float]] = []
    for piece in pieces:
        if joined and joined[-1][1] == piece.weight:  # "re\\(d" is one word
            joined[-1] = joined[-1][0] + piece.text, piece.weight
        else:
            joined.append((piece.text, piece.weight))
    for _, weight in joined:
        if abs(weight) > MOST_WEIGHT:
            raise InvalidRequest(
                f"a weight of the prompt is {weight:.6g}; it must be {-MOST_WEIGHT:g} to {MOST_WEIGHT:g}", "prompt"
            )
    return [(text, weight) for text, weight in joined if text]


def _weighed(group: list[_Piece]) -> list[_Piece]:
    """Weigh what stood in a pair of brackets, by the number at its end or a tenth more."""
    factor, fixed = _BRACKET, False
    number = re.search(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$", group[-1].text) if group else None
    if number and not group[-1].fixed and (number.start() or len(group) > 1):
        factor, fixed = float(number[1]), True
        group[-1].text = group[-1].text[: number.start()]
    return [p if p.fixed else _Piece(p.text, p.weight * factor, fixed) for p in group]
