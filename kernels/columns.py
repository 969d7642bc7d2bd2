"""A picture's columns: what a 3x3 convolution with padding 1 multiplies its weights with.

    columns[n, (y, x), (ky, kx, c)] = picture[n, c, y + ky - 1, x + kx - 1], zero outside          im2col: Chellapilla,
                                                                                          Puri and Simard 2006
    conv(picture) = columns weight^T, weight [out, (ky, kx, c)]: a convolution's own, as channels-last memory has it

Every number is read once and stored at its nine places. Whoever has it in registers stores it (`scatter`): the kernel
here, which only copies, or group norm's.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.aot import Variant
from kernels.arguments import floats, require, require_aligned, require_contiguous, require_dtype, require_shape
from kernels.cost import Cost
from kernels.dependent import await_previous
from kernels.launch import launch

if TYPE_CHECKING:
    from torch import Tensor

TAPS = 9
_PLACES, _CHANNELS, _WARPS = 16, 64, 4  # of a program: one load of 16 bytes a thread, 128 bytes of a position


def reference(picture: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, h w, 9 c], in the picture's type: nothing is calculated."""
    import torch.nn.functional as F

    n, c, h, w = picture.shape
    taps = F.unfold(picture, 3, padding=1).view(n, c, TAPS, h * w)  # torch has the channel outside
    return taps.permute(0, 3, 2, 1).reshape(n, h * w, TAPS * c)


@triton.jit
def scatter(values, out, place, channels, there, positions, WIDTH: tl.constexpr, ACROSS: tl.constexpr):
    """Stores values [places, channels] of a picture of `positions`, ACROSS in a line, into its columns at `out`.

    To each position from where a tap sees them; and zeros, where these places' own taps look outside.
    """
    values = values.to(out.dtype.element_ty)
    nothing = tl.zeros(values.shape, out.dtype.element_ty)
    high = positions // ACROSS
    y = place // ACROSS
    x = place % ACROSS
    for tap in range(9):  # unrolled, nine taps' addresses at once would not fit beside the values of 16 warps
        up = tap // 3 - 1
        left = tap % 3 - 1
        seen = (y >= up) & (y - up < high) & (x >= left) & (x - left < ACROSS)
        to = ((place - up * ACROSS - left) * 9 + tap) * WIDTH
        tl.store(out + to[:, None] + channels[None, :], values, mask=there & seen[:, None])
        blind = (y + up < 0) | (y + up >= high) | (x + left < 0) | (x + left >= ACROSS)
        to = (place * 9 + tap) * WIDTH
        tl.store(out + to[:, None] + channels[None, :], nothing, mask=there & blind[:, None])


@triton.jit(do_not_specialize=["positions"])
def columns_kernel(
    picture, out, positions,
    WIDTH: tl.constexpr, ACROSS: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program: CHANNELS channels at PLACES positions of one picture."""
    await_previous(DEPENDENT)
    blocks: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    n = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) // blocks * PLACES + tl.arange(0, PLACES)
    channels = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    there = (place < positions)[:, None] & (channels < WIDTH)[None, :]
    values = tl.load(picture + n * positions * WIDTH + place[:, None] * WIDTH + channels[None, :], mask=there)
    scatter(values, out + n * positions * (9 * WIDTH), place, channels, there, positions, WIDTH, ACROSS)


def columns(picture: Tensor, *, out: Tensor | None = None) -> Tensor:
    """picture [n, c, h, w], channels-last -> [n, h w, 9 c] contiguous, of its type.

    ValueError if picture is none of fp16, bf16, f32, is not channels-last in memory, does not start at a multiple of
    16 bytes, or has more than 65535 pictures or 2^31 numbers in a picture's columns.
    """
    require(picture.ndim == 4, f"picture has shape {tuple(picture.shape)}; it must be [n, c, h, w]")
    n, width, height, across = picture.shape
    require_dtype("picture", picture, *floats())
    import torch

    require(
        picture.is_contiguous(memory_format=torch.channels_last),
        f"picture has strides {picture.stride()}; it must be channels_last",
    )
    require(n <= 65535, f"picture has shape {tuple(picture.shape)}; a grid holds 65535 of them")
    out = columns_out(picture, out)
    require_aligned(picture=picture, out=out)
    if out.numel():
        grid = (-(-height * across // _PLACES) * -(-width // _CHANNELS), n)
        launch(
            columns_kernel, grid, picture, out, height * across, width, across, _PLACES, _CHANNELS, num_warps=_WARPS
        )  # fmt: skip
    return out


def columns_out(picture: Tensor, out: Tensor | None) -> Tensor:
    """Room for a picture's columns, or `out` if it is that. ValueError if it is not, or they are too many numbers."""
    import torch

    n, width, height, across = picture.shape
    count = height * across * TAPS * width
    require(count < 2**31, f"picture has shape {tuple(picture.shape)}: {count} numbers of columns, 2^31 are too many")
    shape = (n, height * across, TAPS * width)
    if out is None:
        return torch.empty(shape, dtype=picture.dtype, device=picture.device)
    require_shape("out", out, shape)
    require_dtype("out", out, picture.dtype)
    require_contiguous("out", out)
    return out


def cost(n: int, positions: int, width: int, itemsize: int = 2) -> Cost:
    """One read, nine writes."""
    return Cost(n * positions * width * (1 + TAPS) * itemsize)


def _variant(side: int, width: int, dtype: str) -> Variant:
    constants = {"WIDTH": width, "ACROSS": side, "PLACES": _PLACES, "CHANNELS": _CHANNELS}
    signature = {"picture": f"*{dtype}", "out": f"*{dtype}", "positions": "i32"}
    return Variant(
        columns_kernel,
        f"{width} @ {side}x{side} {dtype}",
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        num_warps=_WARPS,
    )


# Side and channels of what enters the 3x3 convolutions of SD 1.5's two inner levels at 512x512.
INNER = ((8, 1280), (8, 2560), (16, 640), (16, 1280), (16, 1920), (16, 2560))
VARIANTS = [_variant(side, width, dtype) for side, width in INNER for dtype in ("fp16", "bf16")]
