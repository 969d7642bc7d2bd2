"""Computes attention of any number of positions to any number of keys, without the matrix of weights in memory.

    out[i] = sum_j p[i, j] v[j] / sum_j p[i, j],    p[i, j] = exp(q[i] . k[j] / sqrt(d) - max_j)

in one pass over the keys: a running maximum and a running sum per position (Milakov and Gimelshein 2018), in tiles
that stay on the chip (Dao et al. 2022, Dao 2023). The exponential is taken in base 2, its factor log2(e) / sqrt(d)
goes into the multiply-add that subtracts the maximum, in fp32. Products are of fp16 or bf16 with fp32 sums.

Rows, positions and heads may lie anywhere: q, k and v are views into fused projections, and strides of positions are
constants of the compiled kernel, for a 40-wide head's stride that only a launch knows makes 2-byte loads and no
cp.async. A head is cut into two parts that are powers of two (40 = 32 + 8, padded to 16) where padding to the next
power of two would cost 64/40 of every product and load. docs/kernels.md has the picture.

Never run on a GPU: compiled ahead of time, and interpreted against float64.
"""
# ruff: noqa: N803  a kernel's constants are in capitals

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.aot import ARCHITECTURES, Variant
from kernels.attention_tiles import Tiles, choose, for_plugin
from kernels.launch import arch_of, launch

if TYPE_CHECKING:
    from torch import Tensor

# Head dimension: the two parts it is cut into, each a power of two and at least 16 (a matrix unit's depth).
PARTS = {32: (32, 0), 40: (32, 16), 64: (64, 0), 80: (64, 16), 128: (128, 0), 160: (128, 32)}


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Compute the formula in float64: q [n, t, heads d], k and v [n, s, heads d] -> [n, t, heads d]."""
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [n, heads, t, d]
    x = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [n, heads, t, s]
    if causal:
        x = x.masked_fill(x.new_ones(x.shape[-2:]).tril().logical_not(), -math.inf)
    return (x.softmax(-1) @ v).transpose(1, 2).flatten(2)


def work(n: int, t: int, s: int, heads: int, d: int, *, causal: bool = False, itemsize: int = 2) -> tuple[int, int]:
    """Bytes (each input read once, the output written once) and operations (two products; no padding) of a call."""
    pairs = min(t, s) * (min(t, s) + 1) // 2 + max(t - s, 0) * s if causal else t * s
    return itemsize * n * heads * d * 2 * (t + s), 4 * n * heads * d * pairs


def floor(
    n: int, t: int, s: int, heads: int, d: int, *, copy_gbs: float, matrix_tflops: float, causal: bool = False
) -> float:
    """Microseconds below which no version of a call in 16 bits can go, on a device of these two ceilings. The
    exponentials of a head of 40 take longer: n heads t s of them at 16 a clock and multiprocessor (docs/kernels.md)."""
    moved, operations = work(n, t, s, heads, d, causal=causal)
    return max(moved / copy_gbs / 1e3, operations / matrix_tflops / 1e6)


@triton.jit
def _part(
    x: tl.tensor, at: tl.tensor, inside: tl.tensor,
    D: tl.constexpr, FROM: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Columns FROM .. FROM + WIDTH of one head at the offsets `at`; zeros past D, and if MASKED where not `inside`."""
    columns = FROM + tl.arange(0, WIDTH)
    pointers = x + at[:, None] + columns[None, :]
    if FROM + WIDTH > D:
        if MASKED:
            y = tl.load(pointers, mask=inside[:, None] & (columns < D)[None, :], other=0.0)
        else:
            y = tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    elif MASKED:
        y = tl.load(pointers, mask=inside[:, None], other=0.0)
    else:
        y = tl.load(pointers)
    return y


@triton.jit
def _keys(
    q1: tl.tensor, q2: tl.tensor, acc1: tl.tensor, acc2: tl.tensor, most: tl.tensor, total: tl.tensor,
    k: tl.tensor, v: tl.tensor, start: tl.tensor, rows: tl.tensor, s: tl.tensor,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, K_POS: tl.constexpr, V_POS: tl.constexpr,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Adds keys start .. start + WIDTH to the weighted sum, its largest score so far and its normaliser."""
    columns = tl.arange(0, WIDTH)
    seen = start + columns < s
    k += start * K_POS
    v += start * V_POS
    x = tl.dot(q1, _part(k, columns * K_POS, seen, D, 0, D1, MASKED).T)  # [ROWS, WIDTH]
    if D2:
        x = tl.dot(q2, _part(k, columns * K_POS, seen, D, D1, D2, MASKED).T, x)
    if MASKED:
        visible = seen[None, :]
        if CAUSAL:
            visible = visible & (start + columns[None, :] <= rows[:, None])
        x = tl.where(visible, x, -float("inf"))
    # Key 0 is in every row's first tile, so `new` is finite from there on and the subtraction never inf - inf.
    new = tl.maximum(most, tl.max(x, 1) * SCALE)
    p = tl.exp2(x * SCALE - new[:, None])
    shrink = tl.exp2(most - new)
    total = total * shrink + tl.sum(p, 1)
    p = p.to(q1.dtype)
    acc1 = tl.dot(p, _part(v, columns * V_POS, seen, D, 0, D1, MASKED), acc1 * shrink[:, None])
    if D2:
        acc2 = tl.dot(p, _part(v, columns * V_POS, seen, D, D1, D2, MASKED), acc2 * shrink[:, None])
    return acc1, acc2, new, total


@triton.jit(do_not_specialize=["t", "s", "q_row", "k_row", "v_row", "out_row"])
def attention_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, out: tl.tensor, t: tl.tensor, s: tl.tensor,
    q_row: tl.tensor, k_row: tl.tensor, v_row: tl.tensor, out_row: tl.tensor,
    HEADS: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    Q_POS: tl.constexpr, K_POS: tl.constexpr, V_POS: tl.constexpr, OUT_POS: tl.constexpr, ALIGN: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr,
) -> None:  # fmt: skip
    """One program: ROWS positions of one head of one row. Consecutive programs share K and V, which stay in the L2."""
    blocks = tl.cdiv(t, ROWS)
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % HEADS
    row = (tl.program_id(0) // blocks // HEADS).to(tl.int64)  # a batch passes 2^31 elements, a row does not
    q += tl.multiple_of(row * q_row, ALIGN) + head * D
    k += tl.multiple_of(row * k_row, ALIGN) + head * D
    v += tl.multiple_of(row * v_row, ALIGN) + head * D
    out += tl.multiple_of(row * out_row, ALIGN) + head * D
    rows = block * ROWS + tl.arange(0, ROWS)
    inside = rows < t
    q1 = _part(q, rows * Q_POS, inside, D, 0, D1, True)
    q2 = q1
    if D2:
        q2 = _part(q, rows * Q_POS, inside, D, D1, D2, True)
    acc1 = tl.zeros([ROWS, D1], tl.float32)
    acc2 = tl.zeros([ROWS, D2 if D2 else 16], tl.float32)  # without a second part carried along unused, and removed
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    full = s // KEYS * KEYS
    end = s
    if CAUSAL:
        full = tl.minimum(full, block * ROWS // KEYS * KEYS)
        end = tl.minimum(s, (block + 1) * ROWS)
    for start in tl.range(0, full, KEYS):  # every key of these is seen by every row: no masks
        acc1, acc2, most, total = _keys(
            q1, q2, acc1, acc2, most, total, k, v, start, rows, s,
            D, D1, D2, K_POS, V_POS, SCALE, KEYS, False, CAUSAL,
        )  # fmt: skip
    # A loop even where it runs once: as straight code, ptxas makes every wgmma of the function serial (C7515).
    for start in tl.range(full, end, TAIL, num_stages=1):
        acc1, acc2, most, total = _keys(
            q1, q2, acc1, acc2, most, total, k, v, start, rows, s,
            D, D1, D2, K_POS, V_POS, SCALE, TAIL, True, CAUSAL,
        )  # fmt: skip
    share = 1.0 / total[:, None]
    columns = tl.arange(0, D1)
    to = out + (rows * OUT_POS)[:, None]
    tl.store(to + columns[None, :], (acc1 * share).to(out.dtype.element_ty), mask=inside[:, None])
    if D2:
        columns = D1 + tl.arange(0, D2)
        mask = inside[:, None] & (columns < D)[None, :]
        tl.store(to + columns[None, :], (acc2 * share).to(out.dtype.element_ty), mask=mask)


def _strides(name: str, x: Tensor, positions: int, width: int) -> tuple[int, int]:
    """Strides of rows and positions of one operand, or ValueError for what the compiled kernel may not be given."""
    each = 16 // x.element_size()
    row = x.stride(0) if x.shape[0] > 1 else 0
    position = x.stride(1) if positions > 1 else width
    if x.stride(2) != 1:
        raise ValueError(f"{name}: the last stride is {x.stride(2)}, but must be 1")
    if x.data_ptr() % 16 or row % each or position % each:
        raise ValueError(
            f"{name}: starts {x.data_ptr() % 16} bytes past a multiple of 16, with strides of {row} and {position}; the"
            f" start must be a multiple of 16 bytes and strides of {each} elements"
        )
    if position < 0 or row < 0 or (positions + 256) * position >= 2**31:  # the last tile's addresses, masked or not
        raise ValueError(f"{name}: a stride of {position} over {positions} positions does not fit into 31 bits")
    return row, position


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    causal: bool = False,
    out: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over `heads` heads: q [n, t, heads d], k and v [n, s, heads d] -> [n, t, heads d].

    fp16 or bf16 on the current CUDA device (float32 too in the interpreter), d one of PARTS, any strides of rows and
    positions that are multiples of 16 bytes, s at least 1. `causal` lets position i see keys 0 .. i. `out` may be any
    such view that overlaps none of them; by default the result is new and contiguous. The order of sums depends on t,
    s, d and the architecture, never on n. `tiles` overrides the table's choice. ValueError for anything else.
    """
    import torch

    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape:
        raise ValueError(
            f"q, k, v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}: not [n, t, c] and two [n, s, c]"
        )
    n, t, width = q.shape
    s = k.shape[1]
    d = width // heads if heads > 0 and width % heads == 0 else 0
    if k.shape[0] != n or k.shape[2] != width or s == 0:
        raise ValueError(
            f"k and v are {list(k.shape)}, but q is {list(q.shape)}: rows and width must agree, s be 1 or more"
        )
    if d not in PARTS:
        raise ValueError(f"{width} wide over {heads} heads: a head must be one of {', '.join(map(str, PARTS))} wide")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: not all float16 or all bfloat16")
    if q.dtype == torch.float32 and q.is_cuda:
        raise ValueError("q is float32, which only the interpreter computes: the kernel is for float16 and bfloat16")
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if out.shape != q.shape or out.dtype != q.dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, but the result {q.dtype} {list(q.shape)}")
    q_row, q_pos = _strides("q", q, t, width)
    k_row, k_pos = _strides("k", k, s, width)
    v_row, v_pos = _strides("v", v, s, width)
    out_row, out_pos = _strides("out", out, t, width)
    if n * t == 0:
        return out
    tiles = tiles or choose(d, arch_of(q), t)
    grid = (-(-t // tiles.rows) * heads * n,)  # one dimension: y and z end at 65535
    launch(
        attention_kernel, grid,
        q, k, v, out, t, s, q_row, k_row, v_row, out_row,
        **constants(heads, d, (q_pos, k_pos, v_pos, out_pos), tiles, causal=causal, itemsize=q.element_size()),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return out


def constants(
    heads: int, d: int, positions: tuple[int, int, int, int], tiles: Tiles, *, causal: bool = False, itemsize: int = 2
) -> dict[str, int | float | bool]:
    """Return the constants that a kernel is compiled for; `positions` are the strides of positions of q, k, v, out."""
    d1, d2 = PARTS[d]
    q_pos, k_pos, v_pos, out_pos = positions
    return {
        "HEADS": heads, "D": d, "D1": d1, "D2": d2,
        "Q_POS": q_pos, "K_POS": k_pos, "V_POS": v_pos, "OUT_POS": out_pos, "ALIGN": 16 // itemsize,
        "SCALE": math.log2(math.e) / math.sqrt(d), "CAUSAL": causal,
        "ROWS": tiles.rows, "KEYS": tiles.keys, "TAIL": tiles.tail,
    }  # fmt: skip


def _variant(name: str, d: int, dtype: str, tiles: Tiles, arch: int, *, plugin: bool = False) -> Variant:
    """Return a variant as the networks call it: self-attention on a fused projection, causal in the text encoder's 12
    heads of 64, and cross-attention with keys and values side by side."""
    causal, heads = name == "causal", 12 if name == "causal" else 8
    width = heads * d
    q_pos, kv_pos = (width, 2 * width) if name == "cross" else (3 * width, 3 * width)
    values = constants(heads, d, (q_pos, kv_pos, kv_pos, width), tiles, causal=causal)
    pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    numbers = dict.fromkeys(("t", "s", "q_row", "k_row", "v_row", "out_row"), "i32")
    return Variant(
        attention_kernel,
        f"{name} d{d} {dtype} {tiles}",
        {**pointers, **numbers, **dict.fromkeys(values, "constexpr")},
        values,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        archs=(arch,),
        plugin=plugin,
    )


def variants(arch: int) -> list[Variant]:
    """Return the variants that the tiles' table chooses on `arch`, in both types."""
    listed = []
    for d in PARTS:
        for dtype in ("fp16", "bf16"):
            names = {tiles: "self" for tiles in (choose(d, arch, 4096), choose(d, arch, 64))}
            listed += [_variant(name, d, dtype, tiles, arch) for tiles, name in names.items()]
        listed.append(_variant("plugin", d, "fp16", for_plugin(d, arch), arch, plugin=True))
    listed += [_variant("cross", d, "fp16", choose(d, arch, 4096), arch) for d in (40, 64, 80, 160)]
    listed.append(_variant("causal", 64, "fp16", choose(64, arch, 77), arch))
    return listed


VARIANTS = [variant for arch in ARCHITECTURES for variant in variants(arch)]
