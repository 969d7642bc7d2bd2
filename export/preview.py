"""The preview: a linear map from latents to colours, fitted to the model's own autoencoder.

A latent position is nearly a colour already, so a preview is one small matrix product and costs the device
nothing. The map is fitted by least squares on synthetic pictures, which need no data set: smooth fields of colour
with discs and boxes of other colours, on grounds from white to black.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.spec import Spec

_PICTURES = 32


@dataclass(frozen=True)
class PreviewMap:
    matrix: list[list[float]]  # [3][C + 1]: latents and 1 to red, green, blue in 0..1
    explained: float  # share of the colours' variance that the map explains


def fit_preview(spec: Spec, encoder: onnxruntime.InferenceSession) -> PreviewMap:
    """Fit on pictures of at most 256 pixels a side, through the exported encoder."""
    unit = spec.size_multiple
    side = max(unit, min(256, spec.defaults.width) // unit * unit)
    rows, colours = [], []
    for seed in range(_PICTURES):
        picture = synthetic_picture(seed, side, spec.vae.image_channels)[None]  # [1, 3, side, side]
        moments = np.asarray(encoder.run(None, {"picture": picture.numpy()})[0])[0]  # [2C, h, w]
        mean = torch.from_numpy(moments[: spec.vae.latent_channels])
        latents = (mean - spec.vae.shift_factor) * spec.vae.scaling_factor
        small = F.avg_pool2d(picture, spec.vae.factor)[0]  # [3, h, w]
        rows.append(torch.cat([latents, torch.ones_like(latents[:1])]).flatten(1).T)
        colours.append((small * 0.5 + 0.5).flatten(1).T)
    x, y = torch.cat(rows).double(), torch.cat(colours).double()  # [n, C + 1], [n, 3]
    solution = torch.linalg.lstsq(x, y).solution  # [C + 1, 3]
    unexplained = (y - x @ solution).square().sum() / (y - y.mean(0)).square().sum()
    return PreviewMap([[round(v, 6) for v in row] for row in solution.T.tolist()], round(1 - unexplained.item(), 4))


def synthetic_picture(seed: int, side: int, channels: int = 3) -> Tensor:
    """A picture [channels, side, side] in -1..1 with smooth and sharp parts, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    field = F.interpolate(uniform(1, channels, 4, 4), size=(side, side), mode="bicubic", align_corners=False)[0]
    ground = uniform(channels, 1, 1) if seed % 2 else torch.full((channels, 1, 1), 1.0 - (seed % 4) / 2)
    picture = torch.lerp(ground.expand_as(field), field, 0.0 if seed % 3 == 0 else 0.8)
    line = torch.linspace(0, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    for shape in range(6):
        cy, cx, size = uniform(3).tolist()
        distance = (y - cy).hypot(x - cx) if shape % 2 else torch.maximum((y - cy).abs(), (x - cx).abs())
        picture = torch.where(distance < 0.05 + 0.2 * size, uniform(channels, 1, 1), picture)
    return picture.clamp(0, 1) * 2 - 1
