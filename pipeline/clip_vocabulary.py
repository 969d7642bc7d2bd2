"""CLIP's own vocabulary (Radford et al. 2021, 2.4), which a single-file checkpoint lacks: as a tokenizer folder.

`clip_merges.txt.gz` is the first 48,894 merges of OpenAI's bpe_simple_vocab_16e6.txt, all that CLIP uses (NOTICE).
Everything else follows from them: 256 bytes, the same bytes at the end of a word, a word for each merge, two marks.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = Path(__file__).with_name("clip_merges.txt.gz")


def merges() -> list[str]:
    """Return the pairs, in the order in which they apply, each "left right"."""
    return gzip.decompress(_MERGES.read_bytes()).decode().splitlines()


def vocabulary(pairs: list[str]) -> dict[str, int]:
    """Return each token's text and its id, in the order of the ids."""
    # GPT-2's printable name of each byte: its own character, or the next unused one from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*names, *(f"{name}</w>" for name in names), *(pair.replace(" ", "") for pair in pairs), START, END]
    return {word: number for number, word in enumerate(words)}


def tokenizer_files(*, pad: str, tokens: int) -> dict[str, bytes]:
    """Return the four files of a published CLIP tokenizer, by name.

    `pad` fills a text up to `tokens`: the end mark in SD 1, "!" in SD 2.
    """
    pairs = merges()
    words = vocabulary(pairs)
    assert len(words) == SIZE and pad in words
    marks = {"bos_token": _mark(START), "eos_token": _mark(END), "pad_token": pad, "unk_token": _mark(END)}
    fixed = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "do_lower_case": True, "errors": "replace"}
    return {
        "vocab.json": json.dumps(words, ensure_ascii=False, separators=(",", ":")).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *pairs, "")).encode(),
        "special_tokens_map.json": json.dumps(marks, indent=2).encode(),
        "tokenizer_config.json": json.dumps(fixed | marks, indent=2).encode(),
    }


def _mark(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
