"""CLIP's byte-pair tokenizer (Radford et al. 2021, 2.4) from a checkpoint's vocab.json and merges.txt.

The `tokenizers` wheel does the work; what is written here is CLIP's own rules: lower case, white space folded,
words split by one pattern, "</w>" at the end of a word, a start and an end mark, padding to the context length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.config import read_object
from pipeline.errors import CheckpointError
from pipeline.source import Source, source_of
from pipeline.spec import TextSpec

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MARKS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>", "unk": "<|endoftext|>"}
_VOCAB, _MERGES, _CONFIG, _SPECIAL = (
    f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
)
_LARGEST = 16 << 20  # bytes of a vocabulary or its merges; CLIP's has one million


@dataclass(frozen=True)
class Tokens:
    ids: NDArray[np.int64]  # [tokens]
    cut: bool  # the text had more tokens than fit


class ClipTokenizer:
    """Text to the token ids that the text encoder takes."""

    def __init__(self, checkpoint: Path | Source, spec: TextSpec) -> None:
        """Errors: CheckpointError, naming the file, for one that is missing, malformed or made for another encoder."""
        source = source_of(checkpoint)
        vocab_path, merges_path = source.place(_VOCAB), source.place(_MERGES)
        vocab, marks = read_object(source, _VOCAB, _LARGEST), _marks(source)
        self._length = spec.tokens
        for name, number in vocab.items():
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < spec.vocab_size:
                raise CheckpointError(
                    f"{vocab_path}: token {name[:64]!r} has number {number!r}; "
                    f"the text encoder takes 0 to {spec.vocab_size - 1}"
                )
        for mark in marks.values():
            if mark not in vocab:
                raise CheckpointError(f"{vocab_path} lacks the token {mark[:64]!r}")
        self._bos, self._eos, self._pad = (vocab[marks[mark]] for mark in ("bos", "eos", "pad"))
        try:
            merges = _merges(source.read(_MERGES, _LARGEST))
        except FileNotFoundError:
            raise CheckpointError(f"{merges_path} is missing; a checkpoint is a folder in diffusers' layout") from None
        except ValueError as error:
            raise CheckpointError(f"{merges_path} cannot be read, or does not fit vocab.json: {error}") from None
        try:
            model = models.BPE(
                vocab,
                merges,
                unk_token=marks["unk"],
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
                fuse_unk=False,
            )
        except Exception as error:  # the wheel raises bare Exception for files that it does not understand
            raise CheckpointError(f"{merges_path} cannot be read, or does not fit vocab.json: {error}") from None
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in dict.fromkeys(marks.values())])

    @property
    def room(self) -> int:
        """Tokens that a text may have, the two marks excluded."""
        return self._length - 2

    def encode(self, text: str) -> Tokens:
        """Start mark, the text's first `room` tokens, end mark, padding: int64 [tokens]."""
        words = self.words(text)
        return Tokens(self.framed(words[: self.room]), cut=len(words) > self.room)

    def words(self, text: str) -> list[int]:
        """The text's tokens, as many as it has, without marks."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def framed(self, words: list[int]) -> NDArray[np.int64]:
        """At most `room` tokens between start and end mark, then padding: int64 [tokens]."""
        assert len(words) <= self.room
        ids = np.full(self._length, self._pad, np.int64)
        marked = [self._bos, *words, self._eos]
        ids[: len(marked)] = marked
        return ids


def _merges(text: bytes) -> list[tuple[str, str]]:
    """Read merges.txt: a line a pair, in the order in which they apply. Errors: ValueError."""
    lines = [line for line in text.decode("utf-8").split("\n") if line and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"line {lines[number][:64]!r} is no pair")
    return pairs  # type: ignore[return-value]


def _marks(source: Source) -> dict[str, str]:
    """The names of the start, end, padding and unknown tokens.

    special_tokens_map.json, where it is there, has the last word: SD 2's pads with "!" and its config says otherwise.
    """
    told = read_object(source, _CONFIG, _LARGEST)
    if source.holds(_SPECIAL):
        told |= {key: token for key, token in read_object(source, _SPECIAL, _LARGEST).items() if token}
    marks = {}
    for mark, default in _MARKS.items():
        token: Any = told.get(f"{mark}_token") or default
        name = token.get("content") if isinstance(token, dict) else token  # bare, or as {"content": text}
        if not isinstance(name, str):
            raise CheckpointError(f"{source.place(_CONFIG)}: {mark}_token is not a token's text")
        marks[mark] = name
    return marks
