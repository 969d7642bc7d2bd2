"""A small CLIP tokenizer: of CLIP's byte pairs those that the captions need, and then the most frequent ones.

A word that the captions have is split exactly as CLIP splits it: the pairs that CLIP applies to it are all there, and
each was the first of all that could be applied.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.clip_vocabulary import END, START, merges, vocabulary

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+"
# As pipeline/tokenizer.py splits, in the words of the wheel's own expressions.
_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_BYTES = 512  # entries for each byte, alone and at the end of a word


def tokenizer_files(texts: Iterable[str], size: int, tokens: int) -> dict[str, bytes]:
    """Return the files of a tokenizer with `size` entries, by name, for texts of at most `tokens` tokens."""
    pairs = chosen_pairs(texts, size - _BYTES - 2)
    words = vocabulary(pairs)
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    fixed = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "do_lower_case": True, "errors": "replace",
             "add_prefix_space": False}  # fmt: skip
    return {
        "vocab.json": json.dumps(words, ensure_ascii=False, separators=(",", ":")).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *pairs, "")).encode(),
        "tokenizer.json": _whole(words, pairs).to_str().encode(),
        "special_tokens_map.json": json.dumps(marks, indent=2).encode(),
        "tokenizer_config.json": json.dumps(fixed | marks, indent=2).encode(),
    }


def chosen_pairs(texts: Iterable[str], room: int) -> list[str]:
    """Return `room` pairs or fewer, in CLIP's order: those of the texts, the most used first, and then CLIP's first."""
    every = merges()
    rank = {pair: i for i, pair in enumerate(every)}
    used: Counter[str] = Counter()
    for word, count in Counter(word for text in texts for word in re.findall(_WORDS, text.lower())).items():
        for pair in _applied(word, rank):
            used[pair] += count
    # A pair is used at least as often as those that are built on it, and stands before them.
    chosen = sorted(used, key=lambda pair: (-used[pair], rank[pair]))[:room]
    seen = set(chosen)
    chosen += [pair for pair in every if pair not in seen][: room - len(chosen)]
    return sorted(chosen, key=rank.__getitem__)


def _applied(word: str, rank: dict[str, int]) -> list[str]:
    """Return the pairs that byte-pair encoding applies to a word (Sennrich et al. 2016), in their order."""
    parts = [_NAMES[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    applied = []
    while len(parts) > 1:
        pairs = [f"{a} {b}" for a, b in itertools.pairwise(parts)]
        best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        applied.append(best)
        left, right = best.split(" ")
        joined, i = [], 0
        while i < len(parts):
            both = i + 1 < len(parts) and parts[i] == left and parts[i + 1] == right
            joined.append(left + right if both else parts[i])
            i += 2 if both else 1
        parts = joined
    return applied


def _names() -> dict[int, str]:
    """Return GPT-2's printable name of each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_NAMES = _names()


def _whole(words: dict[str, int], pairs: list[str]) -> Tokenizer:
    """Return the tokenizer as one file, as transformers writes CLIP's."""
    split = [tuple(pair.split(" ")) for pair in pairs]
    model = models.BPE(words, split, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>")  # type: ignore[arg-type]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing((END, words[END]), (START, words[START]),
                                                           trim_offsets=False, add_prefix_space=False)  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    return tokenizer
