"""What the UNet and the VAE share: residual blocks, and halving and doubling a side."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.ops import Ops


class Resnet(nn.Module):
    """Two normalised convolutions around which the input passes (He et al. 2016); the time shifts the middle.

    `time_width` is None where there is no time: in a VAE.
    """

    def __init__(self, inside: int, outside: int, *, time_width: int | None, groups: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.norm1 = nn.GroupNorm(groups, inside, eps=eps)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, outside)
        self.norm2 = nn.GroupNorm(groups, outside, eps=eps)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.conv_shortcut = None if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x [n, inside, h, w], shift [n, outside] (the output of `time_emb_proj`) -> [n, outside, h, w]."""
        ops = self.ops
        y = ops.conv(ops.group_norm(x, self.norm1, silu=True), self.conv1)  # [n, outside, h, w]
        if self.conv_shortcut is not None:
            x = ops.conv(x, self.conv_shortcut)
        return ops.conv(ops.group_norm(y, self.norm2, shift=shift, silu=True), self.conv2, x)


class Downsample(nn.Module):
    """[n, c, h, w] -> [n, c, h/2, w/2] by a strided convolution."""

    def __init__(self, channels: int, ops: Ops, *, symmetric: bool) -> None:
        super().__init__()
        # The VAE was trained with zeros to the right and below only, the UNet with zeros all around.
        self.ops, self.symmetric = ops, symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)), self.conv)


class Upsample(nn.Module):
    """[n, c, h, w] -> [n, c, 2h, 2w]."""

    def __init__(self, channels: int, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.upsample_conv(x, self.conv)
