"""Numbers as waves: how the UNet sees a timestep, a guidance, a size."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(timestep: Tensor, width: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Return sinusoids of the timestep (Vaswani et al. 2017, section 3.5): [n] float32 -> [n, width] float32.

    They are float32 whatever the network's type is: float16 cannot tell timestep 999 times a frequency from its
    neighbours.
    """
    half = width // 2
    rising = torch.arange(half, dtype=torch.float32, device=timestep.device)
    frequencies = torch.exp(rising * (-math.log(10000.0) / (half - freq_shift)))
    angles = timestep.float()[:, None] * frequencies  # [n, width / 2]
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Return sinusoids of 1000 (guidance - 1) (Meng et al. 2023, appendix; Luo et al. 2023): [n] -> [n, width]."""
    half = width // 2
    rising = torch.arange(half, dtype=torch.float32, device=guidance.device)
    frequencies = torch.exp(rising * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (guidance.float() - 1.0)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
