"""A matrix product of few rows and a great depth, cut along its depth so that all of a GPU takes part.

    part[s] = x[:, s] w[:, s]^T,   y = part[0] + part[1] + .. + bias + residual            split-K, without atomics

A 3x3 convolution of 1280 channels at 8x8 for two rows is 128 x 1280 x 11520: ten tiles of 128 x 128 for 132
multiprocessors. Cut 13 times there are 130 programs, which read the 29 MB of weights all at once. Each stores its part
in float32; a second kernel adds the parts in their order. The same bits every time, then, for the same split. The split
follows rows, columns and depth (`kernels/split_product_tiles.py`): in `exact` serving a request's rows are always the
same two, or one; in `fast` serving a bucket of other rows may have other bits, as a library's products do.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
# pyright: reportGeneralTypeIssues=false
# (to pyright a static_range returns nothing)
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.aot import ARCHITECTURES, Variant
from kernels.arguments import floats, require, require_aligned, require_contiguous, require_dtype, require_shape
from kernels.columns import INNER, TAPS
from kernels.cost import Cost
from kernels.dependent import await_previous
from kernels.launch import arch_of, launch
from kernels.split_product_tiles import Tile, candidates, choose

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK, _WARPS = 512, 2  # of a program of the sum: 8 numbers a thread, and as many of each part on their way


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [.., k], weight [n, k] -> [.., n] in float64: what every other result is compared with."""
    y = x.double() @ weight.double().T
    y = y if bias is None else y + bias.double()
    return y if residual is None else y + residual.double()


@triton.jit(do_not_specialize=["rows", "span"])
def split_product_kernel(
    x, weight, partial, rows, span,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """partial[s, rows, WIDTH] from x[rows, DEPTH] and weight[WIDTH, DEPTH] over `span` of the depth, the last less.

    Programs run about in order: those that read the same weights, other tiles of rows, follow each other.
    """
    await_previous(DEPENDENT)
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    down = (rows + ROWS - 1) // ROWS
    row = tl.program_id(0) % down * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // down % across * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(0) // down // across
    k = tl.arange(0, STEP)
    # Past the end the last row or column is read again: a valid address, and nobody stores what comes of it.
    a = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * DEPTH + k[None, :]
    b = weight + tl.minimum(column, WIDTH - 1)[:, None] * DEPTH + k[None, :]
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    begin = tl.multiple_of(part * span, STEP)
    a += begin
    b += begin
    deep = tl.minimum(span, DEPTH - begin)
    # No part is without a step (Tile.cut). Untold, ptxas of Triton 3.6 makes the wgmma of 128x128 tiles serial (C7515):
    # around a loop that may not run, zeros would have to meet its sums.
    tl.assume(deep > 0)
    for start in range(0, deep, STEP):
        if DEPTH % STEP == 0:
            left = tl.load(a + start)
            right = tl.load(b + start)
        else:
            left = tl.load(a + start, mask=(start + k < deep)[None, :], other=0.0)
            right = tl.load(b + start, mask=(start + k < deep)[None, :], other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    to = partial + (part * rows.to(tl.int64) + row)[:, None] * WIDTH + column[None, :]
    tl.store(to, total, mask=there)


@triton.jit(do_not_specialize=["rows"])
def split_product_sum_kernel(
    partial, bias, residual, out, rows,
    WIDTH: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[rows, WIDTH] from as large parts, SPLIT of them, added in their order."""
    await_previous(DEPENDENT)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count = rows * WIDTH  # counted here: the compiler then knows of its divisors, and loads 16 bytes at a time
    there = at < count
    apart = count.to(tl.int64)
    total = tl.full([BLOCK], 0.0, tl.float32)
    # Four loads first and then their sums: one after the other, each would wait for the L2 by itself.
    for s in tl.static_range(0, SPLIT, 4):
        a = tl.load(partial + s * apart + at, mask=there, other=0.0)
        b, c, d = a, a, a
        if s + 1 < SPLIT:
            b = tl.load(partial + (s + 1) * apart + at, mask=there, other=0.0)
        if s + 2 < SPLIT:
            c = tl.load(partial + (s + 2) * apart + at, mask=there, other=0.0)
        if s + 3 < SPLIT:
            d = tl.load(partial + (s + 3) * apart + at, mask=there, other=0.0)
        total += a
        if s + 1 < SPLIT:
            total += b
        if s + 2 < SPLIT:
            total += c
        if s + 3 < SPLIT:
            total += d
    if BIAS:
        total += tl.load(bias + at % WIDTH, mask=there).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + at, mask=there).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


def split_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """x [.., k] contiguous, weight [n, k], bias [n], residual [.., n] contiguous -> x weight^T + bias + residual,
    [.., n] contiguous, summed in float32 and rounded once. `out` may be the residual.

    `tile`: another than `choose` gives, to time it, or to have the bits of another number of rows.
    ValueError if x is none of fp16, bf16, f32, if the others' types or shapes do not fit it, or if one is not
    contiguous or does not start at a multiple of 16 bytes.
    """
    import torch

    require(weight.ndim == 2, f"weight has shape {tuple(weight.shape)}; it must be [n, k]")
    width, depth = weight.shape
    require_dtype("x", x, *floats())
    require(x.shape[-1] == depth, f"x is {x.shape[-1]} deep; weight takes {depth}")
    require_contiguous("x", x)
    shape = (*x.shape[:-1], width)
    rows = x.numel() // max(depth, 1)
    require(0 < width * depth < 2**31, f"weight is {width} x {depth}; it must have 1 to 2^31 - 1 numbers")
    # 8 halves or 4 singles are 16 bytes: what lies otherwise is copied in pieces.
    require(depth * x.element_size() % 16 == 0, f"x is {depth} deep; rows must be a multiple of 16 bytes")
    require(rows * width < 2**31, f"the result would be {rows} x {width}; it must have less than 2^31 numbers")
    for name, tensor, wanted in (
        ("weight", weight, (width, depth)),
        ("bias", bias, (width,)),
        ("residual", residual, shape),
    ):
        if tensor is not None:
            require_shape(name, tensor, wanted)
            require_dtype(name, tensor, x.dtype)
            require_contiguous(name, tensor)
    out = torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out
    require_shape("out", out, shape)
    require_dtype("out", out, x.dtype)
    require_contiguous("out", out)
    given = {"bias": bias, "residual": residual}
    require_aligned(x=x, weight=weight, out=out, **{name: one for name, one in given.items() if one is not None})
    if not rows:
        return out
    tile = tile or choose(rows, width, depth, arch_of(x), x.element_size())
    split, span = tile.cut(depth)
    partial = torch.empty((split, rows, width), dtype=torch.float32, device=x.device)
    launch(
        split_product_kernel, (tile.programs(rows, width) * split,),
        x, weight, partial, rows, span, width, depth, tile.rows, tile.columns, tile.step,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    launch(
        split_product_sum_kernel, (-(-rows * width // _BLOCK),),
        partial, weight if bias is None else bias, weight if residual is None else residual, out, rows, width,
        split, bias is not None, residual is not None, _BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return out


def cost(rows: int, width: int, depth: int, itemsize: int = 2) -> Cost:
    """Of weights, rows and result; the parts are ours, and written and read again from the L2 where they fit."""
    return Cost((rows * (depth + width) + width * (depth + 1)) * itemsize, 2 * rows * width * depth)


def _product_variant(tile: Tile, width: int, depth: int, dtype: str, arch: int) -> Variant:
    constants = {"WIDTH": width, "DEPTH": depth, "ROWS": tile.rows, "COLUMNS": tile.columns, "STEP": tile.step}
    signature = {"x": f"*{dtype}", "weight": f"*{dtype}", "partial": "*fp32", "rows": "i32", "span": "i32"}
    return Variant(
        split_product_kernel,
        f"{width}x{depth} {tile.rows}x{tile.columns}x{tile.step} {tile.warps} warps {tile.stages} stages {dtype}",
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
    )


def _sum_variant(width: int, split: int, dtype: str, *, bias: bool, residual: bool) -> Variant:
    constants = {"WIDTH": width, "SPLIT": split, "BIAS": bias, "RESIDUAL": residual, "BLOCK": _BLOCK}
    signature = {"partial": "*fp32"} | dict.fromkeys(("bias", "residual", "out"), f"*{dtype}") | {"rows": "i32"}
    name = f"{width} of {split}{' bias' * bias}{' residual' * residual} {dtype}"
    signature |= dict.fromkeys(constants, "constexpr")
    return Variant(split_product_sum_kernel, name, signature, constants, num_warps=_WARPS)


def _listed() -> Iterator[Variant]:
    # SD 1.5's two inner levels, all to 1280 channels.
    for dtype in ("fp16", "bf16"):
        splits: set[int] = set()
        for arch in ARCHITECTURES:
            for rows, (side, channels) in itertools.product((1, 2, 8, 32), INNER):
                tile = choose(rows * side * side, 1280, TAPS * channels, arch)
                splits.add(tile.cut(TAPS * channels)[0])
                yield _product_variant(tile, 1280, TAPS * channels, dtype, arch)
        for split in sorted(splits):
            for more in (False, True):
                yield _sum_variant(1280, split, dtype, bias=more, residual=more)
    for rows in (64, 128, 512, 2048):
        for tile in candidates(rows, 1280, 9 * 1280, 90):
            yield _product_variant(tile, 1280, 9 * 1280, "fp16", 90)


# Neither rows nor parts are constants of a product: shapes share kernels.
VARIANTS = list({f"{variant} {variant.archs}": variant for variant in _listed()}.values())
