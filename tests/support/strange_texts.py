"""Texts that tokenizers stumble over."""

from __future__ import annotations

import random

# What tokenizers stumble over: their own marks, endings, composed and decomposed letters, letters whose lower case has
# another length, widths, joiners, white space of every kind, controls.
PIECES = [
    "a red apple", "A photo of the BLUE cat", "'s", "'LL", "n't", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>",
    "</w>", "!", "!!!", " ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f", "\x85",
    "é", "e\u0301", "ﬁ", "İ", "ß", "Σ", "ς", "Ǆ", "½", "\uff11\uff12", "٣", "👩\u200d🚀", "🇩🇪", "か\u3099",
    "한", "ᄒ\u1161",
]  # fmt: skip


def strange_texts(count: int, seed: int) -> list[str]:
    """Random Unicode without lone surrogates, which are not text."""
    chance = random.Random(seed)

    def piece() -> str:
        if chance.random() < 0.4:
            return chance.choice(PIECES)
        code = chance.randrange(chance.choice((0x80, 0x250, 0x3000, 0x110000)))
        return chr(code if not 0xD800 <= code < 0xE000 else code - 0x1000)

    return ["".join(piece() for _ in range(chance.randrange(30))) for _ in range(count)]
