"""CLIP's byte-pair tokenizer (Radford et al. 2021, 2.4) from a checkpoint's own files.

The `tokenizers` wheel does the work; what is written here is CLIP's own rules: lower case, white space folded,
words split by one pattern, "</w>" at the end of a word, a start and an end mark, padding to the context length.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.checkpoint.vocabulary import Vocabulary, read_vocabulary
from pipeline.errors import CheckpointError
from pipeline.source import Renamed, Source, source_of
from pipeline.spec import Spec, TextSpec

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

log = logging.getLogger("latentd.checkpoint")


@dataclass(frozen=True)
class Tokens:
    ids: NDArray[np.int64]  # [tokens], or [2, tokens] for two text encoders
    cut: bool  # the text had more tokens than fit


class ClipTokenizer:
    """Turns text into the token ids that the text encoder takes."""

    def __init__(self, checkpoint: Path | Source, spec: TextSpec) -> None:
        """Read the files. Errors: CheckpointError naming one that is missing, malformed or made for another encoder."""
        vocabulary = read_vocabulary(source_of(checkpoint), spec.vocab_size)
        self._length, self.width = spec.tokens, spec.width
        numbers = {mark: vocabulary.number(token) for mark, token in vocabulary.marks.items()}
        for mark, number in numbers.items():
            if number is None:
                raise CheckpointError(f"{vocabulary.place} lacks the token {vocabulary.marks[mark][:64]!r}")
        self._bos, self._eos, self._pad = (numbers[mark] for mark in ("bos", "eos", "pad"))
        if vocabulary.longest is not None and vocabulary.longest < spec.tokens:
            log.warning(
                "%s: the tokenizer's model_max_length is %d; texts have the text encoder's %d tokens",
                vocabulary.place,
                vocabulary.longest,
                spec.tokens,
            )
        try:
            model = models.BPE(
                vocabulary.tokens,
                vocabulary.merges,
                unk_token=vocabulary.marks["unk"],
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
                fuse_unk=False,
            )
        except Exception as error:  # the wheel raises bare Exception for files that it does not understand
            raise CheckpointError(
                f"{vocabulary.place}: its merges cannot be read, or do not fit its tokens: {error}"
            ) from None
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
        self._add(vocabulary)
        self._further = _further(vocabulary)

    def _add(self, vocabulary: Vocabulary) -> None:
        """Add tokens that words are not split into; the wheel numbers new ones itself, behind the last."""
        known = {token.content for token in vocabulary.added.values()}
        self._tokenizer.add_tokens([vocabulary.added[number] for number in sorted(vocabulary.added)])
        marks = dict.fromkeys(vocabulary.marks.values())
        self._tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks if mark not in known])
        for number, token in vocabulary.added.items():
            if self._tokenizer.token_to_id(token.content) != number:
                raise CheckpointError(
                    f"{vocabulary.place}: the added token {token.content[:64]!r} has the number {number}, "
                    f"and not the next one, {self._tokenizer.token_to_id(token.content)}"
                )

    @property
    def each(self) -> tuple[ClipTokenizer, ...]:
        """Return the tokenizer of each text encoder."""
        return (self,)

    @property
    def capacity(self) -> int:
        """Return how many tokens a text may have, the two marks excluded."""
        return self._length - 2

    def encode(self, text: str) -> Tokens:
        """Encode a text: start mark, its first `capacity` tokens, end mark, padding; int64 [tokens]."""
        words = self.words(text)
        return Tokens(self.framed(words[: self.capacity]), cut=len(words) > self.capacity)

    def words(self, text: str) -> list[int]:
        """Return the text's tokens, as many as it has, without marks."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [one for token in ids for one in (token, *self._further.get(token, ()))] if self._further else ids

    def framed(self, words: list[int]) -> NDArray[np.int64]:
        """Frame at most `capacity` tokens: start mark, the tokens, end mark, padding; int64 [tokens]."""
        assert len(words) <= self.capacity
        ids = np.full(self._length, self._pad, np.int64)
        marked = [self._bos, *words, self._eos]
        ids[: len(marked)] = marked
        return ids


class TwoTokenizers:
    """Holds the tokenizers of SDXL's two text encoders, which pad differently and may know different words."""

    def __init__(self, first: ClipTokenizer, second: ClipTokenizer) -> None:
        self.each = first, second

    @property
    def capacity(self) -> int:
        """Return how many tokens a text may have, the two marks excluded: both have the same length."""
        return self.each[0].capacity

    def encode(self, text: str) -> Tokens:
        """Encode a text for both: int64 [2, tokens]."""
        both = [tokenizer.encode(text) for tokenizer in self.each]
        return Tokens(np.stack([tokens.ids for tokens in both]), any(tokens.cut for tokens in both))


AnyTokenizer = ClipTokenizer | TwoTokenizers


def tokenizer_of(source: Source, spec: Spec) -> AnyTokenizer:
    """Read the tokenizer of a checkpoint, or both. Errors: CheckpointError."""
    first = ClipTokenizer(source, spec.text)
    if spec.text_2 is None:
        return first
    return TwoTokenizers(first, ClipTokenizer(Renamed(source, "tokenizer", "tokenizer_2"), spec.text_2))


def _further(vocabulary: Vocabulary) -> dict[int, list[int]]:
    """List what follows a token of a textual inversion of several vectors: <cat> means <cat> <cat>_1 <cat>_2.

    Diffusers names them so, and its pipelines write the others behind the first wherever a prompt has that one.
    """
    numbers = {token.content: number for number, token in vocabulary.added.items()}
    further: dict[int, list[int]] = {}
    for name, number in numbers.items():
        while (following := numbers.get(f"{name}_{len(further.get(number, ())) + 1}")) is not None:
            further.setdefault(number, []).append(following)
    return further
