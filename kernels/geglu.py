"""GEGLU: half of a projection, gated by GELU of the other half, alone or inside the matrix product that makes it.

    [value, gate] = x W^T + b,   y = value * gelu(gate)             Shazeer 2020, section 2
    gelu(g) = g (1 + erf(g / sqrt 2)) / 2                           Hendrycks and Gimpel 2016, the exact form

Alone, a matrix product writes 2c columns, and this reads them and writes c. Inside, neither happens: `interleave`
puts the gate's column beside the value's, so that both lie in one thread's accumulators.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl

from kernels.aot import Variant, parameters
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
from kernels.launch import arch_of, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

_ROWS, _COLUMNS = 16, 256  # a program of `geglu`: 256 divides every width of SD 1.5 and 2.1
_PACK = 8  # tiles of rows that share their weights in the L2 cache before the next weights are taken


def reference(x: Tensor) -> Tensor:
    """x [.., 2c] -> [.., c] in float64: what every other result is compared with."""
    value, gate = x.double().chunk(2, dim=-1)
    return value * gate * (gate * -(0.5**0.5)).erfc() / 2  # 1 + erf(z) = erfc(-z), without cancellation


def interleave(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """weight [2c, k], bias [2c] as a checkpoint has them, values first -> v0, g0, v1, g1, ..: copies."""
    import torch

    def mixed(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2), dim=1).flatten(0, 1).contiguous()

    require(len(weight) % 2 == 0, f"weight has {len(weight)} rows; it must have as many values as gates")
    return mixed(weight), None if bias is None else mixed(bias)


@triton.jit
def gelu(g):
    """max(g, 0) - |g| erfc(|g| / sqrt 2) / 2: nothing cancels. erfc = t P(t) exp(-g^2 / 2) with t = 1 / (1 + 0.36 |g|)
    (Abramowitz and Stegun 7.1.26 in form); P fitted here to a relative 9e-7 for |g| < 14. A third of the
    instructions of libdevice's erf, whose branches would cost more than the memory does."""
    size = tl.abs(g)
    t = 1.0 / (1.0 + 0.36 * size)
    p = (0.0941128079 * t - 0.3595301974) * t + 0.3619090957
    p = ((p * t + 0.0530979683) * t + 0.2794387530) * t + 0.2835447709
    p = (p * t + 0.2874260932) * t
    return tl.maximum(g, 0.0) - 0.5 * size * p * tl.exp2(-0.7213475204 * size * size)  # log2(e) / 2


@triton.jit(do_not_specialize=["rows"])
def geglu_kernel(
    x, out, rows,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x: `rows` rows of 2 WIDTH elements, STRIDE apart; out: rows of WIDTH, contiguous."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    row = row.to(tl.int64)
    at = x + row[:, None] * STRIDE + column[None, :]
    value = tl.load(at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(at + WIDTH, mask=there, other=0.0).to(tl.float32)
    y = (value * gelu(gate)).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * WIDTH + column[None, :], y, mask=there)


@triton.jit(do_not_specialize=["rows"])
def geglu_linear_kernel(
    x, weight, bias, out, rows,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """out[rows, WIDTH] from x[rows, DEPTH] and the interleaved weight; a tile is ROWS x COLUMNS of the product.

    A program sums its tile over DEPTH alone and in order, STEP at a time: no split, so nothing depends on `rows`.
    """
    across: tl.constexpr = (2 * WIDTH + COLUMNS - 1) // COLUMNS
    down = (rows + ROWS - 1) // ROWS
    # Programs run about in order: PACK tiles of rows by all columns at a time keep weights and rows in the cache.
    pack = tl.program_id(0) // (PACK * across)
    tall = tl.minimum(down - pack * PACK, PACK)
    rest = tl.program_id(0) % (PACK * across)
    row = (pack * PACK + rest % tall) * ROWS + tl.arange(0, ROWS)
    column = rest // tall * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, STEP)
    # Past the end the last row or column is read again: a valid address, and nobody stores what comes of it.
    a = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * STRIDE + k[None, :]
    b = weight + tl.minimum(column, 2 * WIDTH - 1)[:, None] * DEPTH + k[None, :]
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for start in range(0, DEPTH, STEP):
        if DEPTH % STEP == 0:
            left = tl.load(a + start)
            right = tl.load(b + start)
        else:
            left = tl.load(a + start, mask=(start + k < DEPTH)[None, :], other=0.0)
            right = tl.load(b + start, mask=(start + k < DEPTH)[None, :], other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + column, mask=column < 2 * WIDTH, other=0.0).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(total, [ROWS, COLUMNS // 2, 2]))
    y = (value * gelu(gate)).to(out.dtype.element_ty)
    column = rest // tall * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * WIDTH + column[None, :], y, mask=there)


def geglu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x [.., 2c], its leading dimensions one stride apart -> [.., c] contiguous, of x's type.

    ValueError if x is none of fp16, bf16, f32, is not laid out so, has an odd last dimension, or does not start at
    a multiple of 16 bytes.
    """
    import torch

    width = x.shape[-1] // 2
    require(x.shape[-1] % 2 == 0, f"x is {x.shape[-1]} wide; it must be even: values and gates")
    require_dtype("x", x, *floats())
    rows = rows_of("x", x)
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device) if out is None else out
    _check_out(out, x, width)
    require_aligned(x=x, out=out)
    if out.numel():
        columns = min(_COLUMNS, max(16, power_of_two(width)))
        grid = (-(-len(rows) // _ROWS) * -(-width // columns),)
        launch(geglu_kernel, grid, rows, out, len(rows), rows.stride(0), width, _ROWS, columns)
    return out


def geglu_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """x [.., k], weight [2c, k] and bias [2c] from `interleave` -> [.., c] contiguous: geglu(x W^T + b) in one kernel.

    Accumulates in float32. The tile follows the number of rows (`tile` is for timing others); the order in which k is
    summed does not.
    ValueError as in `geglu`, and if the types of x, weight and bias differ.
    """
    import torch

    (columns, depth), width = weight.shape, len(weight) // 2
    require(columns % 2 == 0 and columns * depth < 2**31, f"weight is {columns} x {depth}; it must have even rows")
    require_dtype("x", x, *floats())
    require(x.shape[-1] == depth, f"x is {x.shape[-1]} wide; weight takes {depth}")
    for name, tensor, shape in (("weight", weight, (columns, depth)), ("bias", bias, (columns,))):
        if tensor is not None:
            require_shape(name, tensor, shape)
            require_dtype(name, tensor, x.dtype)
            require_contiguous(name, tensor)
    rows = rows_of("x", x)
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device) if out is None else out
    _check_out(out, x, width)
    require_aligned(x=x, weight=weight, out=out, **({} if bias is None else {"bias": bias}))
    if out.numel():
        tile = tile or choose(len(rows), arch_of(x), x.element_size())
        grid = (-(-len(rows) // tile.rows) * -(-columns // tile.columns),)
        launch(
            geglu_linear_kernel, grid,
            rows, weight, weight if bias is None else bias, out, len(rows), rows.stride(0), width, depth,
            bias is not None, tile.rows, tile.columns, tile.step, _PACK,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def cost(rows: int, width: int, itemsize: int = 2) -> Cost:
    """Return the cost of `geglu`."""
    return Cost(3 * rows * width * itemsize)


def linear_cost(rows: int, width: int, depth: int, itemsize: int = 2) -> Cost:
    """Return the cost of `geglu_linear`."""
    return Cost((rows * (depth + width) + 2 * width * (depth + 1)) * itemsize, 4 * rows * width * depth)


class Tile(NamedTuple):
    """A tile of `geglu_linear`: rows and columns of a program, depth of a step, warps, steps under way."""

    rows: int
    columns: int  # of the product, twice those of the result
    step: int
    warps: int
    stages: int


def choose(rows: int, arch: int, itemsize: int) -> Tile:
    """Few rows take small tiles, for 132 multiprocessors to share them; `step` never depends on the rows."""
    if itemsize == 4:  # no matrix units: 32 sums a thread, and half the depth for the same shared memory
        return Tile(64, 64, 32, 4, 3)
    if arch == 90:  # wgmma of 64 rows a warpgroup; 96, 128 and 147 KB of shared memory
        if rows <= 128:
            return Tile(64, 128, 64, 4, 4)
        return Tile(128, 128, 64, 8, 4) if rows <= 1024 else Tile(128, 256, 64, 8, 3)
    # 36 and 48 KB, 128 registers: two programs fit on a multiprocessor of any architecture.
    return Tile(64, 128, 32, 4, 4) if rows <= 128 else Tile(128, 128, 32, 8, 4)


def _check_out(out: Tensor, x: Tensor, width: int) -> None:
    require_shape("out", out, (*x.shape[:-1], width))
    require_dtype("out", out, x.dtype)
    require_contiguous("out", out)


def _variant(width: int, dtype: str) -> Variant:
    constants = {"STRIDE": 2 * width, "WIDTH": width, "ROWS": _ROWS, "COLUMNS": _COLUMNS}
    signature = {"x": f"*{dtype}", "out": f"*{dtype}", "rows": "i32"} | dict.fromkeys(constants, "constexpr")
    return Variant(geglu_kernel, f"{width} {dtype}", signature, constants, plugin=True)


def _linear_variant(rows: int, depth: int, dtype: str, arch: int) -> Variant:
    tile, width = choose(rows, arch, 2), 4 * depth
    constants = {"STRIDE": depth, "WIDTH": width, "DEPTH": depth, "BIAS": True, "PACK": _PACK}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "STEP": tile.step}
    signature = dict.fromkeys(("x", "weight", "bias", "out"), f"*{dtype}") | {"rows": "i32"}
    kinds = {name: "constexpr" for name in parameters(geglu_linear_kernel)[len(signature) :]}
    return Variant(
        geglu_linear_kernel,
        f"{width}x{depth} {tile.rows}x{tile.columns} {dtype}",
        signature | kinds,
        constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
    )


_DTYPES = ("fp16", "bf16")
VARIANTS = [_variant(width, dtype) for width in (1280, 2560, 5120) for dtype in _DTYPES]
# SD 1.5 at two rows: 8192, 2048, 512 and 128 positions; each tile of each architecture occurs.
VARIANTS += [
    _linear_variant(rows, depth, dtype, arch)
    for arch in (80, 89, 90, 120)
    for rows, depth in ((8192, 320), (2048, 640), (512, 1280), (128, 1280))
    for dtype in _DTYPES
]
