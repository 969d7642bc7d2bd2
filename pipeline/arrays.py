"""The arrays that everything passes on: float32 numbers, and the pixels of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]  # [H, W, 3]


def to_pixels(picture: F32) -> Pixels:
    """Turn [3, H, W] in -1..1 into uint8 [H, W, 3], rounded half to even as diffusers does."""
    unit = np.clip(picture * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((unit * np.float32(255)).round().astype(np.uint8).transpose(1, 2, 0))
