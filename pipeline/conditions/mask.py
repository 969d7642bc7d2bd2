"""Inpainting: a picture that is known in places, and is to stay there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Holds a mask over latent positions, and the latents of what lies under it.

    After each evaluation x becomes mask x + (1 - mask) original, the original noised by the picture's first noise to
    the level that x has then; after the last one it is without noise. Lugmayr et al. 2022, "RePaint", eq. 8, without
    going back; with that one noise, as diffusers' StableDiffusionInpaintPipeline has it over a UNet of no more
    channels than the latents'. A predicted picture (x0) is what the UNet makes of x: nothing is put into it.
    """

    mask: F32  # [h, w], 0..1; 1: made anew, bit for bit what it is without a mask
    original: F32  # [C, h, w], as the UNet knows latents

    def __post_init__(self) -> None:
        assert self.mask.dtype == self.original.dtype == np.float32, (self.mask.dtype, self.original.dtype)
        assert self.mask.shape == self.original.shape[1:], (self.mask.shape, self.original.shape)
        assert ((self.mask >= 0) & (self.mask <= 1)).all(), "a mask is 0..1"
