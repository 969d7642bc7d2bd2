"""Numbers in the forms that others take."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.arrays import to_bfloat16


def test_bfloat16_is_rounded_half_to_even() -> None:
    chance = np.random.default_rng(0)
    numbers = np.exp2(chance.uniform(-140, 120, 4000)).astype(np.float32) * chance.choice([-1, 1], 4000)
    ties = (np.arange(64, dtype=np.uint32) << 16 | 0x3F808000).view(np.float32)  # exactly between two
    numbers = np.concatenate([numbers.astype(np.float32), ties, -ties, np.float32([0, -0.0, 1, 1e-45, 3.4e38])])
    theirs = torch.from_numpy(numbers).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(to_bfloat16(numbers), theirs)
