"""CLIP's byte-pair tokenizer (Radford et al. 2021, 2.4) from a checkpoint's vocab.json and merges.txt.

The `tokenizers` wheel does the work; what is written here is CLIP's own rules: lower case, white space folded,
words split by one pattern, "</w>" at the end of a word, a start and an end mark, padding to the context length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.errors import CheckpointError

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    ids: NDArray[np.int64]  # [tokens]
    cut: bool  # the text had more tokens than fit


class ClipTokenizer:
    """Text to the token ids that the text encoder takes."""

    def __init__(self, checkpoint: Path, tokens: int) -> None:
        """`tokens` is the encoder's context length. Errors: CheckpointError for files missing or malformed."""
        folder = checkpoint / "tokenizer"
        self._length = tokens
        try:
            vocab = json.loads((folder / "vocab.json").read_bytes())
            config = json.loads((folder / "tokenizer_config.json").read_bytes())
            names = {mark: _name(config.get(f"{mark}_token")) for mark in ("bos", "eos", "pad")}
            self._bos, self._eos, self._pad = (vocab[names[mark]] for mark in ("bos", "eos", "pad"))
            model = models.BPE.from_file(
                str(folder / "vocab.json"),
                str(folder / "merges.txt"),
                unk_token=_name(config.get("unk_token")),
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
                fuse_unk=False,
            )
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{folder}: the tokenizer's files cannot be read: {error}") from None
        except KeyError as error:
            raise CheckpointError(f"{folder / 'vocab.json'} lacks the token {error}") from None
        except Exception as error:  # the wheel raises bare Exception for files that it does not understand
            raise CheckpointError(f"{folder}: vocab.json and merges.txt do not fit together: {error}") from None
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
        self._tokenizer.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names.values())])

    @property
    def room(self) -> int:
        """Tokens that a text may have, the two marks excluded."""
        return self._length - 2

    def encode(self, text: str) -> Tokens:
        """Start mark, the text's first `room` tokens, end mark, padding: int64 [tokens]."""
        words = self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = np.full(self._length, self._pad, np.int64)
        marked = [self._bos, *words[: self.room], self._eos]
        ids[: len(marked)] = marked
        return Tokens(ids, cut=len(words) > self.room)


def _name(token: Any) -> str:
    """A token's text; configs hold it bare or as {"content": text}."""
    return str(token["content"] if isinstance(token, dict) else token or "<|endoftext|>")
