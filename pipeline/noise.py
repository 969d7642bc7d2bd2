"""Noise equal to torch's CPU generator, without torch, so that a seed gives the picture that diffusers gives.

torch fills float32 tensors of 16 elements or more block by block: Mersenne Twister words, the low 24 bits as a
uniform number, Box-Muller over blocks of 16 (the first eight are radii, the last eight angles). A ragged tail
redraws the last 16. Equal to within 4e-6; torch differs from itself by 2e-6 between vector instruction sets.
Source: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16


def standard_normal(seed: int, shape: tuple[int, ...], draws: int = 1) -> NDArray[np.float32]:
    """Draw what `draws` successive `torch.randn(shape, generator=manual_seed(seed))` do: float32 [draws, *shape].

    `seed` is 0..2^32-1, the part of a seed that torch's CPU generator uses.
    """
    size = math.prod(shape)
    assert 0 <= seed < 2**32 and size >= _BLOCK, (seed, shape)
    words = np.random.RandomState(seed)
    return np.stack([_fill(words, size).reshape(shape) for _ in range(draws)])


def _fill(words: np.random.RandomState, size: int) -> NDArray[np.float32]:
    whole = size - size % _BLOCK
    values = np.empty(size, np.float32)
    uniform = _uniform(words, size)
    values[:whole] = _box_muller(uniform[:whole])
    if size > whole:
        values[-_BLOCK:] = _box_muller(_uniform(words, _BLOCK))
    return values


def _uniform(words: np.random.RandomState, size: int) -> NDArray[np.float32]:
    """Draw 24-bit uniform numbers in [0, 1)."""
    drawn = words.randint(0, 2**32, size, dtype=np.uint32)  # the full range: one raw word a number
    return (drawn & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = np.moveaxis(uniform.reshape(-1, 2, _BLOCK // 2), 1, 0)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))  # 1 - u: never log(0)
    angle = np.float32(2 * math.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
