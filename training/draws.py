"""Random numbers that are a function of the recipe's seed and of what they are for, never of what was drawn before.

So nothing random needs to be kept to resume, a batch may be read ahead, and a process draws only its share of it.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def _words(seed: int, purpose: str, index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])


def numbers(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Return numpy's generator for one thing, such as the picture `index` of the phase `purpose`."""
    return np.random.Generator(np.random.PCG64(_words(seed, purpose, index)))


def generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Return torch's generator for one step, on the host, so that a GPU draws the same."""
    (word,) = _words(seed, purpose, step).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word) >> 1)


def permuted(seed: int, purpose: str, index: int, count: int) -> int:
    """Return the entry that comes at place `index` of passes over `count` entries, each pass in an order of its own."""
    turn, place = divmod(index, count)
    return int(_order(seed, purpose, turn, count)[place])


_kept: dict[tuple[int, str, int, int], np.ndarray] = {}


def _order(seed: int, purpose: str, turn: int, count: int) -> np.ndarray:
    key = (seed, purpose, turn, count)
    order = _kept.get(key)
    if order is None:
        order = numbers(seed, f"{purpose} order", turn).permutation(count)
        while len(_kept) >= 8:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = order
    return order
