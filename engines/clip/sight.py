"""What a CLIP vision tower sees of a picture: its middle at the tower's size, normalised."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.arrays import F32, Pixels
from pipeline.checkpoint.clip import Sight

# A longer picture is cut first: resized as a whole, one of 1 x 30,000 would have 224 x 6,720,000 pixels.
_LONGEST = 64  # times its shorter side


def seen(picture: Pixels, side: int, sight: Sight) -> F32:
    """Return a picture [H, W, 3] as [3, side, side], as transformers' CLIPImageProcessor has it.

    It resizes the shorter side to `side`, bicubic, and cuts out the middle; the longer side is cut to whole pixels.
    """
    height, width = picture.shape[:2]
    short = min(width, height)
    if max(width, height) > (most := _LONGEST * short):
        top, left = (max(0, n - most) // 2 for n in (height, width))
        picture = np.ascontiguousarray(picture[top : top + most, left : left + most])
        height, width = picture.shape[:2]
    new_width, new_height = (side if n == short else int(side * n / short) for n in (width, height))
    resized = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - side) // 2, (new_height - side) // 2
    middle = resized.crop((left, top, left + side, top + side))
    unit = np.asarray(middle, np.float32) / np.float32(255)
    normal = (unit - np.asarray(sight.mean, np.float32)) / np.asarray(sight.deviation, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))
