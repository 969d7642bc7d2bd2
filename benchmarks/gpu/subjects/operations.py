"""Every convolution, matrix product and attention of one UNet evaluation, found by walking the network itself.

The network runs on meta tensors (shapes, no numbers) with operations that write down what they are asked for. What
can be one product is one: q, k and v of a token, k and v of the text. The first two layers of the time embedding are
left out: they depend on a table, not on a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.ops import PlainOps
from model.unet import Unet
from pipeline.spec import UnetSpec

HALF = 2  # bytes of a float16


@dataclass(frozen=True)
class Operation:
    """Describes M x N x K of a product over all rows; of a convolution and an attention also what they look like."""

    kind: str  # conv, linear or attention
    name: str  # "conv3x3 @64x64": what it is for, and the side of its output
    m: int
    n: int  # of an attention: keys
    k: int  # of an attention: width of a head
    rows: int
    inside: tuple[int, int, int] = (0, 0, 0)  # of a convolution: channels, height, width, before any padding
    kernel: tuple[int, int, int] = (0, 0, 0)  # of a convolution: side, stride, padding
    heads: int = 0

    @property
    def flops(self) -> float:
        # An attention multiplies twice: queries with keys, weights with values; m counts queries of all rows.
        return 4.0 * self.m * self.n * self.k * self.heads if self.heads else 2.0 * self.m * self.n * self.k

    @property
    def weight_bytes(self) -> float:
        return 0.0 if self.heads else float(HALF * self.n * self.k)

    def floor(self, matrix: float, memory: float) -> float:
        """Return the least seconds: the larger of its arithmetic and of reading its weights once."""
        return max(self.flops / matrix, self.weight_bytes / memory)


@dataclass
class Recorder(PlainOps):
    """Computes as PlainOps does, and writes down each operation."""

    stage: str = "step"  # or time, text: what `linears` is called for
    operations: list[Operation] = field(default_factory=list)

    def _linear(self, name: str, x: Tensor, outside: int) -> None:
        m, k = x.numel() // x.shape[-1], x.shape[-1]
        self.operations.append(Operation("linear", name, m, outside, k, x.shape[0]))

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        if self.stage == "step":
            if residual is None:
                what = "q cross" if linear.bias is None else "proj_in"
            else:
                what = "geglu out" if linear.in_features == 4 * linear.out_features else "out or proj_out"
            self._linear(f"{what} {_at(x)}", x, linear.out_features)
        return super().linear(x, linear, residual)

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        widths = [linear.out_features for linear in linears]
        if self.stage == "time":
            for width in widths:
                self._linear("temb", x, width)
        elif self.stage == "text":
            for k, v in zip(widths[::2], widths[1::2], strict=True):
                self._linear("kv cross (text, hoistable)", x, k + v)
        else:
            self._linear(f"qkv self {_at(x)}", x, sum(widths))
        return super().linears(x, linears)

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        y = super().conv(x, conv, residual)
        self._conv(x, conv, y, down="down " if conv.stride[0] == 2 else "")
        return y

    def upsample_conv(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        y = super().upsample_conv(x, conv)
        doubled = torch.empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], device="meta")
        self._conv(doubled, conv, y, down="up ")
        return y

    def _conv(self, x: Tensor, conv: nn.Conv2d, y: Tensor, down: str) -> None:
        side, (n, outside, high, wide) = conv.kernel_size[0], y.shape
        what = "conv1x1 proj or skip" if side == 1 else f"conv3x3 {down}".strip()
        shape = Operation(
            "conv",
            f"{what} @{high}x{wide}",
            n * high * wide,
            outside,
            x.shape[1] * side * side,
            n,
            inside=(x.shape[1], x.shape[2], x.shape[3]),
            kernel=(side, conv.stride[0], int(conv.padding[0])),
        )
        self.operations.append(shape)

    def geglu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        self._linear(f"geglu in {_at(x)}", x, linear.out_features)
        return super().geglu(x, linear)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        rows, positions, width = q.shape
        what = "attn self" if k.shape[1] == positions else "attn cross"
        shape = Operation(
            "attention", f"{what} {_at(q)}", rows * positions, k.shape[1], width // heads, rows, heads=heads
        )
        self.operations.append(shape)
        return super().attention(q, k, v, heads, causal)


def _at(tokens: Tensor) -> str:
    side = math.isqrt(tokens.shape[1])
    return f"@{side}x{side}"


def operations(spec: UnetSpec, rows: int, tokens: int = 77, copies: int = 1) -> list[Operation]:
    """List the operations in order: the time's, the text's, the step's. Takes a second, no memory.

    `copies`: rows that share their latents, see Unet.denoise; 2 of twins.
    """
    recorder = Recorder()
    with torch.device("meta"), torch.no_grad():
        net = Unet(spec, ops=recorder)
        side = spec.sample_size
        latents = torch.empty(rows // copies, spec.in_channels, side, side)
        recorder.stage = "time"
        shifts = net.time_shifts(torch.empty(rows))
        recorder.stage = "text"
        context = net.context_kv(torch.empty(rows, tokens, spec.context_width))
        recorder.stage = "step"
        net.denoise(latents, shifts, context, copies)
    return recorder.operations


def step_floor(spec: UnetSpec, rows: int, matrix: float, memory: float, copies: int = 1) -> tuple[float, float]:
    """Return (FLOP, seconds): what an evaluation of so many rows computes, and the sum of its operations' floors."""
    work = operations(spec, rows, copies=copies)
    return sum(op.flops for op in work), sum(op.floor(matrix, memory) for op in work)
