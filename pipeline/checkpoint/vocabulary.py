"""The files of a CLIP tokenizer: transformers 4 writes vocab.json and merges.txt, transformers 5 tokenizer.json alone.

Tokens that were added later, such as those of a textual inversion, stand in up to three further places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from pipeline.config import read_object
from pipeline.errors import CheckpointError
from pipeline.source import Source

_VOCAB, _MERGES, _WHOLE, _CONFIG, _SPECIAL, _ADDED = FILES = tuple(
    f"tokenizer/{name}"
    for name in (
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    )
)
_LARGEST = 16 << 20  # bytes of a vocabulary or its merges; CLIP's has one million
_MARKS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>", "unk": "<|endoftext|>"}
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# What CLIP's byte pairs are, in a tokenizer.json's own words.
_MODEL = {
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": ("", None),
    "end_of_word_suffix": ("</w>",),
    "fuse_unk": (False, None),
    "byte_fallback": (False, None),
    "ignore_merges": (False, None),
}

Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Vocabulary:
    """Holds a tokenizer's words."""

    place: str  # the file that an error about its words names
    tokens: dict[str, int]
    merges: Merges
    marks: dict[str, str]  # the start, end, padding and unknown tokens' names, by "bos", "eos", "pad", "unk"
    added: dict[int, AddedToken]  # beyond `tokens`, or in them with flags of their own
    longest: int | None  # tokens of a text, marks included, that it was saved for

    def number(self, token: str) -> int | None:
        if token in self.tokens:
            return self.tokens[token]
        return next((number for number, one in self.added.items() if one.content == token), None)


def read_vocabulary(source: Source, size: int) -> Vocabulary:
    """Read the words, for a text encoder of `size` tokens. Errors: CheckpointError, naming the file."""
    config = read_object(source, _CONFIG, _LARGEST)
    if (name := config.get("tokenizer_class")) not in (None, *_CLASSES):
        raise CheckpointError(f"{source.place(_CONFIG)}: tokenizer_class is {str(name)[:64]!r}; latentd does CLIP's")
    whole = read_object(source, _WHOLE, _LARGEST) if source.holds(_WHOLE) else None
    where = _WHOLE if whole is not None and not source.holds(_VOCAB) else _VOCAB
    tokens, merges = _words(source, whole)
    added = _added(source, config, whole)
    for token, number in (*tokens.items(), *((token.content, number) for number, token in added.items())):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
            raise CheckpointError(
                f"{source.place(where)}: token {token[:64]!r} has number {number!r}; "
                f"the text encoder takes 0 to {size - 1}"
            )
    longest = config.get("model_max_length")
    return Vocabulary(
        str(source.place(where)), tokens, merges, _marks(source, config), added, longest if _counts(longest) else None
    )


def _words(source: Source, whole: dict[str, Any] | None) -> tuple[dict[str, int], Merges]:
    """Read tokens and merges, from whichever of the two forms is there. Two that differ are two models."""
    if whole is None:
        return _old_words(source)
    place, model = source.place(_WHOLE), whole.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{place} has no model")
    for key, values in _MODEL.items():
        if model.get(key) not in values:
            raise CheckpointError(f"{place}: model.{key} is {model.get(key)!r:.64}; CLIP's tokenizer has {values[0]!r}")
    tokens, lines = model.get("vocab"), model.get("merges")
    if not isinstance(tokens, dict) or not isinstance(lines, list):
        raise CheckpointError(f"{place}: model has no vocab, or no merges")
    try:
        merges = _pairs([line.split(" ") if isinstance(line, str) else line for line in lines])
    except ValueError as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from None
    if source.holds(_VOCAB) and _old_words(source) != (tokens, merges):
        raise CheckpointError(f"{place} and {source.place(_VOCAB)} with its merges.txt are two different vocabularies")
    return tokens, merges


def _old_words(source: Source) -> tuple[dict[str, int], Merges]:
    tokens, place = read_object(source, _VOCAB, _LARGEST), source.place(_MERGES)
    try:
        text = source.read(_MERGES, _LARGEST).decode("utf-8")
        lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
        return tokens, _pairs([line.rstrip("\r").split(" ") for line in lines])
    except FileNotFoundError:
        raise CheckpointError(f"{place} is missing; a checkpoint is a folder in diffusers' layout") from None
    except ValueError as error:
        raise CheckpointError(f"{place} cannot be read as merges: {error}") from None


def _pairs(lines: list[Any]) -> Merges:
    """Read the pairs, in the order in which they apply. Errors: ValueError."""
    for line in lines:
        if not isinstance(line, list) or len(line) != 2 or not all(isinstance(part, str) for part in line):
            raise ValueError(f"{str(line)[:64]} is no pair")
    return [(first, second) for first, second in lines]


def _added(source: Source, config: dict[str, Any], whole: dict[str, Any] | None) -> dict[int, AddedToken]:
    """Read the tokens that were added, by their number, from every file that names some."""
    added: dict[int, AddedToken] = {}
    for place, number, flags in _listed(source, config, whole):
        try:
            # The flags' names are both libraries'; the default of `normalized` is that of a token that is no mark.
            names = ("single_word", "lstrip", "rstrip", "normalized", "special")
            token = AddedToken(flags["content"], **{name: flags[name] for name in names if name in flags})
            number = int(number)
        except (TypeError, ValueError, KeyError):
            raise CheckpointError(f"{place}: an added token is {str(flags)[:64]}, with number {number!r:.64}") from None
        before = added.get(number)
        if before is not None and before.content != token.content:
            raise CheckpointError(f"{place}: token {token.content[:64]!r} has the number {number} of another one")
        if before is None:
            added[number] = token
    if twice := [a.content for a in added.values() if sum(a.content == b.content for b in added.values()) > 1]:
        raise CheckpointError(f"{source.place(_CONFIG)}: the added token {twice[0][:64]!r} has two numbers")
    return added


def _listed(
    source: Source, config: dict[str, Any], whole: dict[str, Any] | None
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """List file, number and flags, the file that has the last word first."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{source.place(_CONFIG)}: added_tokens_decoder is no object")
    for number, flags in decoder.items():
        yield str(source.place(_CONFIG)), number, flags
    further = (whole or {}).get("added_tokens") or []
    if not isinstance(further, list):
        raise CheckpointError(f"{source.place(_WHOLE)}: added_tokens is no list")
    for flags in further:
        yield str(source.place(_WHOLE)), flags.get("id") if isinstance(flags, dict) else None, flags
    if source.holds(_ADDED):
        for content, number in read_object(source, _ADDED, _LARGEST).items():
            yield str(source.place(_ADDED)), number, {"content": content}


def _marks(source: Source, config: dict[str, Any]) -> dict[str, str]:
    """Read the names of the start, end, padding and unknown tokens.

    special_tokens_map.json, where it is there, has the last word: SD 2's pads with "!" and its config says otherwise.
    """
    if source.holds(_SPECIAL):
        config = config | {k: token for k, token in read_object(source, _SPECIAL, _LARGEST).items() if token}
    marks = {}
    for mark, default in _MARKS.items():
        token: Any = config.get(f"{mark}_token") or default
        name = token.get("content") if isinstance(token, dict) else token  # bare, or as {"content": text}
        if not isinstance(name, str):
            raise CheckpointError(f"{source.place(_CONFIG)}: {mark}_token is not a token's text")
        marks[mark] = name
    return marks


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
