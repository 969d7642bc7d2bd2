"""The six numbers that SDXL's UNet is given beside the text (Podell et al. 2023, 2.2).

It was trained with the size of each picture before it was scaled, the corner at which it was cropped and the size of
what was left, so that it knows small and cropped pictures, and can be asked for others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32
from pipeline.networks import UnetSpec

SIZES = 6
Pair = tuple[int, int]  # of pixels: width and height, or to the right and down


@dataclass(frozen=True)
class Sizes:
    """Says what a picture is to look as if it had been; None: of the size that it has, and not cropped."""

    original: Pair | None = None
    crop: Pair = (0, 0)  # of the upper left corner, from the left and from above
    target: Pair | None = None

    def numbers(self, width: int, height: int) -> F32:
        """Return what a UNet takes for a picture of this size, [6]; its order is height before width."""
        pairs = (self.original or (width, height), self.crop, self.target or (width, height))
        return np.array([side for across, down in pairs for side in (down, across)], np.float32)

    def inputs(self, unet: UnetSpec, width: int, height: int) -> dict[str, F32]:
        """Return the numbers by the name of their input, of a UNet that takes them."""
        return {"sizes": self.numbers(width, height)} if unet.size_width else {}


AS_IT_IS = Sizes()
