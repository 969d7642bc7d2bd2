"""How networks in training carry out their operations: as torch has them, but where that is slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.ops import PlainOps


class TrainingOps(PlainOps):
    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        """Normalise in float32: in bfloat16 the backward pass takes three times as long on a CPU (torch 2.13, Zen)."""
        return super().group_norm(x.float(), norm, shift=None if shift is None else shift.float(), silu=silu)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        """Compute attention by two products and a softmax.

        At most 256 tokens attend to each other here, so nothing is spared by keeping the scores out of memory, and the
        backward pass of torch's own took a quarter of the denoiser's step in bfloat16 on a CPU (torch 2.13, Zen).
        """
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [n, heads, t, d]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


TRAINING = TrainingOps()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for it.

    Without them a product of 1024 x 1024 numbers takes 48 times as long as in float32 (torch 2.13, AMD Zen 1).
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
