"""Layer normalisation of the last dimension.

    y = (x - mean) / sqrt(variance + eps) * weight + bias          Ba, Kiros and Hinton 2016, eq. 3 and 4

of x, or of x + shift where a stream of residuals lacks a constant vector (engines/cuda/folds.py).
A warp holds a few positions whole, in registers, as float32: the mean first, then the centred squares, so that a
large mean costs no digits of a small variance. No barrier, no shared memory, one read, one write. How a position
is summed depends on its width alone, so its bits do not depend on its company.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.aot import Variant
from kernels.arguments import (
    floats,
    require,
    require_aligned,
    require_contiguous,
    require_dtype,
    require_shape,
    rows_of,
)
from kernels.cost import Cost
from kernels.launch import launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

# Elements of a warp, padding included: 64 a thread, as float32 twice what their registers can hold at full occupancy,
# but 8 loads of 16 bytes in flight for each of them.
_ELEMENTS = 2048
_WIDEST = 4096  # 128 registers a thread; beyond it a row belongs into several warps


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None) -> Tensor:
    """Compute it in float64: every other result is compared with this one."""
    x = x.double() if shift is None else x.double() + shift.double()
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.double() + bias.double()


@triton.jit(do_not_specialize=["positions"])
def layer_norm_kernel(
    x, weight, bias, shift, out, positions, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """x: `positions` rows of WIDTH elements, STRIDE apart; out: the same, contiguous. BLOCK: the next power of two."""
    rows = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    there = (rows < positions)[:, None] & inside[None, :]
    rows = rows.to(tl.int64)
    values = tl.load(x + rows[:, None] * STRIDE + columns[None, :], mask=there, other=0.0).to(tl.float32)
    if SHIFT:
        values += tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(values, axis=1) / WIDTH
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + rows[:, None] * WIDTH + columns[None, :], y.to(out.dtype.element_ty), mask=there)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    shift: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [.., c], its leading dimensions one stride apart, weight, bias, shift [c] -> [.., c] contiguous, of x's type.

    ValueError if x is none of fp16, bf16, f32, is not laid out so, is wider than 4096, or does not start at a
    multiple of 16 bytes. `out` may be x where x is contiguous.
    """
    import torch

    width = x.shape[-1]
    require_dtype("x", x, *floats())
    require(1 <= width <= _WIDEST, f"x is {width} wide; it must be 1 to {_WIDEST}")
    added = weight if shift is None else shift
    for name, tensor in (("weight", weight), ("bias", bias), ("shift", added)):
        require_shape(name, tensor, (width,))
        require_contiguous(name, tensor)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    require_shape("out", out, tuple(x.shape))
    require_dtype("out", out, x.dtype)
    require_contiguous("out", out)
    require_aligned(x=x, weight=weight, bias=bias, shift=added, out=out)
    rows = rows_of("x", x)
    if rows.numel():
        block, at_once = _tile(width)
        grid = (-(-len(rows) // at_once),)
        launch(
            layer_norm_kernel, grid,
            rows, weight, bias, added, out, len(rows), eps,
            rows.stride(0), width, shift is not None, block, at_once, num_warps=1,
        )  # fmt: skip
    return out


def cost(positions: int, width: int, itemsize: int = 2, *, shift: bool = False) -> Cost:
    """One read and one write of everything, and the weights."""
    return Cost((2 * positions + 2 + shift) * width * itemsize)


def _tile(width: int) -> tuple[int, int]:
    """Return the columns, up to a power of two, and the positions of a program."""
    block = max(16, power_of_two(width))
    return block, max(1, _ELEMENTS // block)


def _variant(width: int, dtype: str, shift: bool) -> Variant:
    pointer, block_at_once = f"*{dtype}", _tile(width)
    pointers = dict.fromkeys(("x", "weight", "bias", "shift", "out"), pointer)
    signature = pointers | {"positions": "i32", "eps": "fp32"}
    constants = {"STRIDE": width, "WIDTH": width, "SHIFT": shift}
    constants |= dict(zip(("BLOCK", "AT_ONCE"), block_at_once, strict=True))
    return Variant(
        layer_norm_kernel,
        f"{width}{' shift' * shift} {dtype}",
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        num_warps=1,
        plugin=True,
    )


# SD 1.5 and 2.1's transformers, whose streams may lack a vector; the text encoders.
VARIANTS = [
    _variant(width, dtype, shift)
    for shift, widths in ((False, (320, 640, 1280, 768, 1024)), (True, (320, 640, 1280)))
    for width in widths
    for dtype in ("fp16", "bf16")
]
