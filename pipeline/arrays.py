"""The arrays that everything passes on: float32 numbers, and the pixels of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]  # [H, W, 3]
Halves = NDArray[np.uint16]  # bfloat16, which numpy lacks: the upper 16 bits of float32 numbers


def to_bfloat16(array: F32) -> Halves:
    """Round finite numbers to bfloat16, half to even, as processors and OpenVINO do."""
    bits = array.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_pixels(picture: F32) -> Pixels:
    """Turn [3, H, W] in -1..1 into uint8 [H, W, 3], rounded half to even as diffusers does."""
    unit = np.clip(picture * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((unit * np.float32(255)).round().astype(np.uint8).transpose(1, 2, 0))
