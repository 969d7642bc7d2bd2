"""Turns pictures in -1..1 into bytes, channels side by side, and finds pictures that hold what is no number.

    out = round(255 clip(x / 2 + 1 / 2, 0, 1)), half to even        as diffusers and pipeline/arrays.py round

A program has some bytes of one picture. From channels-last memory it is a copy; from planes each byte gathers its own
number, from the cache. A NaN becomes 0 and an infinity 0 or 255; either sets the picture's flag.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.aot import Variant
from kernels.arguments import floats, require, require_aligned, require_contiguous, require_dtype, require_shape
from kernels.cost import Cost
from kernels.launch import launch

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 2048  # bytes of a program: one store of 16 for each of its 128 threads


def reference(picture: Tensor) -> Tensor:
    """[n, 3, H, W] -> uint8 [n, H, W, 3], from what float32 makes of it: a byte has no digits to be nearly right in.

    Not defined where the picture is NaN.
    """
    unit = (picture.float() * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(dtype=_uint8()).permute(0, 2, 3, 1).contiguous()


@triton.jit
def to_uint8_kernel(
    picture, out, flags,
    POSITIONS: tl.constexpr, CHANNEL: tl.constexpr, POSITION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """CHANNEL and POSITION: strides of `picture`. flags: zero beforehand; set to 1, by whoever, never back."""
    n = tl.program_id(1).to(tl.int64)
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = byte < 3 * POSITIONS
    at = byte if CHANNEL == 1 and POSITION == 3 else byte % 3 * CHANNEL + byte // 3 * POSITION
    x = tl.load(picture + n * (3 * POSITIONS) + at, mask=there, other=0.0).to(tl.float32)
    finite = tl.abs(x) <= 3.4028234663852886e38  # false for NaN too
    bad = tl.max(tl.where(finite, 0, 1), axis=0)
    tl.atomic_max(flags + n, bad, mask=bad > 0, sem="relaxed")
    x = tl.where(x == x, x, -1.0)
    level = tl.minimum(tl.maximum(x * 0.5 + 0.5, 0.0), 1.0) * 255.0
    # Half to even by comparisons: no sum that a compiler could fuse with the product above, which would round once.
    whole = level.to(tl.int32)
    half = whole.to(tl.float32) + 0.5
    up = (level > half) | ((level == half) & ((whole & 1) == 1))
    tl.store(out + n * (3 * POSITIONS) + byte, (whole + up.to(tl.int32)).to(tl.uint8), mask=there)


def to_uint8(picture: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """picture [n, 3, H, W], contiguous or channels-last, -> (uint8 [n, H, W, 3], i32 [n]: 1 where not all is finite).

    ValueError if picture is none of fp16, bf16, f32, is laid out otherwise, or does not start at a multiple of 16
    bytes.
    """
    import torch

    require(
        picture.ndim == 4 and picture.shape[1] == 3,
        f"picture has shape {tuple(picture.shape)}; it must be [n, 3, H, W]",
    )
    n, _, height, width = picture.shape
    require_dtype("picture", picture, *floats())
    planes = picture.is_contiguous()
    require(
        planes or picture.is_contiguous(memory_format=torch.channels_last),
        f"picture has strides {picture.stride()}; it must be contiguous or channels_last",
    )
    require(n <= 65535 and 3 * height * width < 2**31, f"picture has shape {tuple(picture.shape)}: too large")
    out = torch.empty((n, height, width, 3), dtype=torch.uint8, device=picture.device) if out is None else out
    require_shape("out", out, (n, height, width, 3))
    require_dtype("out", out, torch.uint8)
    require_contiguous("out", out)
    require_aligned(picture=picture, out=out)
    flags = torch.zeros(n, dtype=torch.int32, device=picture.device)
    if picture.numel():
        positions = height * width
        strides = (positions, 1) if planes else (1, 3)
        grid = (-(-3 * positions // _BLOCK), n)
        launch(to_uint8_kernel, grid, picture, out, flags, positions, *strides, _BLOCK, num_warps=4)
    return out, flags


def cost(n: int, height: int, width: int, itemsize: int = 2) -> Cost:
    return Cost(n * 3 * height * width * (itemsize + 1))


def _uint8():
    import torch

    return torch.uint8


def _variant(side: int, dtype: str, *, last: bool) -> Variant:
    positions = side * side
    constants = {
        "POSITIONS": positions,
        "CHANNEL": 1 if last else positions,
        "POSITION": 3 if last else 1,
        "BLOCK": _BLOCK,
    }
    signature = {"picture": f"*{dtype}", "out": "*u8", "flags": "*i32"} | dict.fromkeys(constants, "constexpr")
    name = f"{side}x{side} {'channels-last' if last else 'planes'} {dtype}"
    return Variant(to_uint8_kernel, name, signature, constants, plugin=True)


VARIANTS = [_variant(512, dtype, last=last) for dtype in ("fp16", "bf16", "fp32") for last in (True, False)]
