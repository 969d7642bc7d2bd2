"""Operations that also add what a LoRA adds: x W^T + (x A^T) B^T, with A and B of each row.

It stands before any other Ops, so that the networks and the kernels stay as they are. Whoever runs a network gives each
layer's A [n, rank, in] and B [n, out, rank] first; in a captured graph these are buffers that are written between runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ops import Ops


class Pair(NamedTuple):
    a: Tensor  # [n, rank, in]
    b: Tensor  # [n, out, rank]


class AdaptedOps:
    """See model.ops.Ops: those of `ops`, and LoRAs beside the layers that are given one."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._pairs: dict[nn.Module, Pair] = {}

    @contextmanager
    def adding(self, net: nn.Module, pairs: Mapping[str, Pair]) -> Iterator[None]:
        """Add these to the layers of `net` that their paths name, as long as the context lasts."""
        self._pairs = {net.get_submodule(path): pair for path, pair in pairs.items()}
        try:
            yield
        finally:
            self._pairs = {}

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        return self._added(self._ops.linear(x, linear, residual), x, linear)

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        results = self._ops.linears(x, linears)
        return [self._added(y, x, linear) for y, linear in zip(results, linears, strict=True)]

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        y = self._ops.conv(x, conv, residual)
        if (pair := self._pairs.get(conv)) is None:
            return y
        added = (x.flatten(2).transpose(1, 2) @ _rows(pair.a, x).transpose(1, 2)) @ _rows(pair.b, x).transpose(1, 2)
        return y + added.transpose(1, 2).unflatten(2, x.shape[2:])

    def geglu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        if linear not in self._pairs:
            return self._ops.geglu(x, linear)
        value, gate = self.linear(x, linear).chunk(2, dim=-1)
        return value * F.gelu(gate)

    def upsample_conv(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        return self._ops.upsample_conv(x, conv)

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        return self._ops.group_norm(x, norm, shift=shift, silu=silu)

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        return self._ops.concat(x, skip)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return self._ops.layer_norm(x, norm)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        return self._ops.attention(q, k, v, heads, causal)

    def shared_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, copies: int) -> Tensor:
        return self._ops.shared_attention(q, k, v, heads, copies)

    def _added(self, y: Tensor, x: Tensor, linear: nn.Linear) -> Tensor:
        if (pair := self._pairs.get(linear)) is None:
            return y
        return torch.baddbmm(y, x @ _rows(pair.a, x).transpose(1, 2), _rows(pair.b, x).transpose(1, 2))


def _rows(matrix: Tensor, x: Tensor) -> Tensor:
    """Return a row for each of x; while twins are computed once, every second one (model.unet.Unet.denoise)."""
    return matrix[:: len(matrix) // len(x)].to(x.dtype)


def pairs_of(inputs: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Return the pairs by their layers' paths, of a graph's inputs (pipeline.loras.layers.inputs_of)."""
    layers = [name.removesuffix("/A") for name in inputs if name.endswith("/A")]
    return {layer.replace("/", "."): Pair(inputs[f"{layer}/A"], inputs[f"{layer}/B"]) for layer in layers}
