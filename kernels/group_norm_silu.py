"""Group normalisation of channels-last pictures, with the shift before it and the SiLU behind it.

    z = x + shift                                        one number a channel: the time embedding's, or of all pictures
    y = (z - mean) / sqrt(variance + eps) * weight + bias           Wu and He 2018, eq. 1 to 3; a group's mean
    out = y sigmoid(y)                                              SiLU: Hendrycks and Gimpel 2016

One kernel where a program can hold its groups of one picture in registers: one read, one write. Two kernels
elsewhere: the first leaves (mean, sum of centred squares) of each group in each part of the picture, the second
merges the parts and normalises. All in float32, and never as E[x^2] - E[x]^2: within a part by Welford's update,
between channels and parts by Chan, Golub and LeVeque's. Into how many parts a picture is cut depends on its size
and its channels alone, so its bits do not depend on its company.

Longer than 300 lines: both ways compute the one formula above, by the same lines for a group's sums, and one reference
and one launcher stand for both.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from kernels.aot import Variant, parameters
from kernels.arguments import floats, require, require_aligned, require_contiguous, require_dtype, require_shape
from kernels.cost import Cost
from kernels.group_norm_tiles import CHANNELS_APPLIED, PARTS_WARPS, Held, needs_64_bits, plan_of
from kernels.launch import launch

if TYPE_CHECKING:
    from torch import Tensor


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None, silu: bool
) -> Tensor:
    """Compute it in float64: every other result is compared with this one."""
    z = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    grouped = z.unflatten(1, (groups, -1))
    centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
    y = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + eps).sqrt()).flatten(1, 2)
    y = y * weight.double()[:, None, None] + bias.double()[:, None, None]
    return y * y.sigmoid() if silu else y


@triton.jit
def _silu(y):
    return y / (1.0 + tl.exp2(-1.4426950409 * y))  # log2(e)


@triton.jit
def _spread(values, channels, first, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """A number a group, [GROUPS] from group `first` on, to a number a channel. One addend is not zero: exact."""
    in_group = (channels // GROUP)[:, None] == (first + tl.arange(0, GROUPS))[None, :]
    return tl.sum(tl.where(in_group, values[None, :], 0.0), axis=1)


@triton.jit
def _gather(values, channels, first, inside, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """The sum over each group's channels: [channels] to [GROUPS]."""
    in_group = (channels // GROUP)[:, None] == (first + tl.arange(0, GROUPS))[None, :]
    return tl.sum(tl.where(in_group & inside[:, None], values[:, None], 0.0), axis=0)


@triton.jit(do_not_specialize=["positions", "shift_stride"], do_not_specialize_on_alignment=["shift"])
def group_norm_held_kernel(
    x, weight, bias, shift, out, positions, shift_stride, eps,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One program: CHANNELS channels, whole groups, of one picture of `positions` x WIDTH, held in registers.

    BLOCK, GROUPS, POSITIONS: CHANNELS, its groups and `positions` up to a power of two.
    """
    local = tl.arange(0, BLOCK)
    inside = local < CHANNELS
    channels = tl.program_id(0) * CHANNELS + local
    first = tl.program_id(0) * (CHANNELS // GROUP)
    picture = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, POSITIONS)
    at = picture * positions * WIDTH + place[:, None] * WIDTH + channels[None, :]
    there = (place < positions)[:, None] & inside[None, :]
    values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if SHIFT:
        added = tl.load(shift + picture * shift_stride + channels, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(there, values + added[None, :], 0.0)
    count = positions * GROUP
    mean = _gather(tl.sum(values, axis=0), channels, first, inside, GROUP, GROUPS) / count
    values = tl.where(there, values - _spread(mean, channels, first, GROUP, GROUPS)[None, :], 0.0)
    squares = _gather(tl.sum(values * values, axis=0), channels, first, inside, GROUP, GROUPS)
    scale = _spread(tl.rsqrt(squares / count + eps), channels, first, GROUP, GROUPS)
    scale *= tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    y = values * scale[None, :] + b[None, :]
    if SILU:
        y = _silu(y)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["positions", "shift_stride", "parts"], do_not_specialize_on_alignment=["shift"])
def group_norm_parts_kernel(
    x, shift, partial, positions, shift_stride, parts,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    LARGE: tl.constexpr,
):  # fmt: skip
    """partial[picture, part, 2, group]: mean and sum of centred squares over TILE x TILES positions, the last fewer.

    Every thread keeps the mean and the squares of the elements that it meets (Welford 1962), one in each tile.
    LARGE: a picture has 2^31 elements or more, so that offsets within it take 64 bits.
    """
    if LARGE:
        positions = positions.to(tl.int64)
    local = tl.arange(0, BLOCK)
    inside = local < CHANNELS
    channels = tl.program_id(0) * CHANNELS + local
    part = tl.program_id(1)
    picture = tl.program_id(2).to(tl.int64)
    place = part * (TILE * TILES) + tl.arange(0, TILE)
    if LARGE:
        place = place.to(tl.int64)
    base = x + picture * positions * WIDTH + channels[None, :]
    mean = tl.full([TILE, BLOCK], 0.0, tl.float32)
    squares = tl.full([TILE, BLOCK], 0.0, tl.float32)
    there = (place < positions)[:, None] & inside[None, :]
    ahead = tl.load(base + place[:, None] * WIDTH, mask=there, other=0.0)
    for i in range(TILES):
        values, here = ahead.to(tl.float32), there
        now = place + (i + 1) * TILE  # the next tile is on its way while this one is added
        there = ((now < positions) & (i + 1 < TILES))[:, None] & inside[None, :]
        ahead = tl.load(base + now[:, None] * WIDTH, mask=there, other=0.0)
        delta = tl.where(here, values - mean, 0.0)  # what is not there changes neither
        mean += delta * (1.0 / (i + 1.0))
        squares += delta * tl.where(here, values - mean, 0.0)
    # Chan, Golub and LeVeque 1979: squares about a common mean, from squares about several.
    seen = tl.minimum(tl.maximum((positions - place + TILE - 1) // TILE, 0), TILES).to(tl.float32)
    count = tl.sum(seen, axis=0)
    common = tl.sum(mean * seen[:, None], axis=0) / count
    apart = mean - common[None, :]
    squares = tl.sum(squares + apart * apart * seen[:, None], axis=0)
    if SHIFT:
        common += tl.load(shift + picture * shift_stride + channels, mask=inside, other=0.0).to(tl.float32)
    first = tl.program_id(0) * (CHANNELS // GROUP)
    group_mean = _gather(common, channels, first, inside, GROUP, GROUPS) / GROUP
    off = common - _spread(group_mean, channels, first, GROUP, GROUPS)
    squares = _gather(squares + off * off * count, channels, first, inside, GROUP, GROUPS)
    group = tl.arange(0, GROUPS)
    at = partial + (picture * parts + part) * (2 * (WIDTH // GROUP)) + first + group
    tl.store(at, group_mean, mask=group < CHANNELS // GROUP)
    tl.store(at + WIDTH // GROUP, squares, mask=group < CHANNELS // GROUP)


@triton.jit(do_not_specialize=["positions", "shift_stride", "parts", "span"], do_not_specialize_on_alignment=["shift"])
def group_norm_apply_kernel(
    x, weight, bias, shift, partial, out, positions, shift_stride, parts, span, eps,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    LARGE: tl.constexpr,
):  # fmt: skip
    """Merges the parts, of `span` positions each but the last, and normalises TILE x TILES positions of BLOCK channels.

    BLOCK need not hold whole groups: GROUPS is the most that it touches, PARTS `parts`, both up to a power of two.
    LARGE as in `group_norm_parts_kernel`.
    """
    if LARGE:
        positions = positions.to(tl.int64)
    blocks: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    block = tl.program_id(0) % blocks
    picture = tl.program_id(1).to(tl.int64)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    inside = channels < WIDTH
    # The first tile is on its way while the parts are merged, each next one while the one before is written.
    place = tl.program_id(0) // blocks * (TILE * TILES) + tl.arange(0, TILE)
    if LARGE:
        place = place.to(tl.int64)
    base = picture * positions * WIDTH + channels[None, :]
    there = (place < positions)[:, None] & inside[None, :]
    ahead = tl.load(x + base + place[:, None] * WIDTH, mask=there, other=0.0)
    first = block * BLOCK // GROUP
    part = tl.arange(0, PARTS)
    group = first + tl.arange(0, GROUPS)
    known = (part < parts)[:, None] & (group < WIDTH // GROUP)[None, :]
    at = partial + (picture * parts + part)[:, None] * (2 * (WIDTH // GROUP)) + group[None, :]
    means = tl.load(at, mask=known, other=0.0)
    squares = tl.load(at + WIDTH // GROUP, mask=known, other=0.0)
    count = tl.minimum(tl.maximum(positions - part * span, 0), span).to(tl.float32)  # zero past the last part
    mean = tl.sum(means * count[:, None], axis=0) / positions
    apart = means - mean[None, :]
    squares = tl.sum(tl.where(known, squares + apart * apart * (count * GROUP)[:, None], 0.0), axis=0)
    scale = _spread(tl.rsqrt(squares / (positions * GROUP) + eps), channels, first, GROUP, GROUPS)
    centre = _spread(mean, channels, first, GROUP, GROUPS)
    if SHIFT:
        centre -= tl.load(shift + picture * shift_stride + channels, mask=inside, other=0.0).to(tl.float32)
    scale *= tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    for i in range(TILES):
        y = (ahead.to(tl.float32) - centre[None, :]) * scale[None, :] + b[None, :]
        if SILU:
            y = _silu(y)
        to, here = out + base + (place + i * TILE)[:, None] * WIDTH, there
        now = place + (i + 1) * TILE
        there = ((now < positions) & (i + 1 < TILES))[:, None] & inside[None, :]
        ahead = tl.load(x + base + now[:, None] * WIDTH, mask=there, other=0.0)
        tl.store(to, y.to(out.dtype.element_ty), mask=here)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    shift: Tensor | None = None,
    silu: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """x [n, c, h, w] channels-last, weight and bias [c], shift [n, c] with channels side by side (its rows may be one,
    0 apart) -> x's shape, type and layout, and `out` may be x.

    ValueError if x is none of fp16, bf16, f32, is not channels-last in memory, does not start at a multiple of 16
    bytes, has more than 65535 pictures or 2^31 positions a picture, or if its channels do not divide into the groups.
    """
    import torch

    require(x.ndim == 4, f"x has shape {tuple(x.shape)}; it must be [n, c, h, w]")
    n, width, height, across = x.shape
    positions = height * across
    require_dtype("x", x, *floats())
    require(
        x.is_contiguous(memory_format=torch.channels_last),
        f"x has strides {x.stride()}; it must be channels_last: {(positions * width, 1, across * width, width)}",
    )
    require(groups > 0 and width % groups == 0, f"x has {width} channels; they must divide into {groups} groups")
    require(n <= 65535 and positions < 2**31, f"x has shape {tuple(x.shape)}; a grid holds 65535 of 2^31 positions")
    for name, tensor in (("weight", weight), ("bias", bias)):
        require_shape(name, tensor, (width,))
        require_contiguous(name, tensor)
    if shift is not None:
        require_shape("shift", shift, (n, width))
        require(shift.stride(1) == 1 or width == 1, f"shift has strides {shift.stride()}; the last must be 1")
    out = torch.empty_like(x, memory_format=torch.channels_last) if out is None else out
    require_shape("out", out, tuple(x.shape))
    require_dtype("out", out, x.dtype)
    ordered = out.is_contiguous(memory_format=torch.channels_last)
    require(ordered, f"out has strides {out.stride()}, not channels_last")
    require_aligned(x=x, weight=weight, bias=bias, out=out)
    if not x.numel():
        return out
    plan = plan_of(positions, width, groups)
    added, stride = (x, 0) if shift is None else (shift, shift.stride(0))
    same = {"WIDTH": width, "GROUP": width // groups, "SHIFT": shift is not None}
    if isinstance(plan, Held):
        launch(
            group_norm_held_kernel, (width // plan.channels, n),
            x, weight, bias, added, out, positions, stride, eps,
            SILU=silu, **same, **plan.constants, num_warps=plan.warps,
        )  # fmt: skip
        return out
    large = needs_64_bits(positions, width, plan)
    partial = torch.empty((n, plan.parts, 2, groups), dtype=torch.float32, device=x.device)
    launch(
        group_norm_parts_kernel, (width // plan.channels, plan.parts, n),
        x, added, partial, positions, stride, plan.parts,
        LARGE=large, **same, **plan.constants, num_warps=PARTS_WARPS,
    )  # fmt: skip
    launch(
        group_norm_apply_kernel, (-(-positions // plan.applied) * -(-width // CHANNELS_APPLIED), n),
        x, weight, bias, added, partial, out, positions, stride, plan.parts, plan.span, eps,
        SILU=silu, LARGE=large, **same, **plan.apply_constants, num_warps=4,
    )  # fmt: skip
    return out


def cost(n: int, positions: int, width: int, groups: int = 32, itemsize: int = 2) -> Cost:
    """One read and one write; a second read where a program cannot hold its groups (it may come
    from the L2 cache)."""
    reads = 1 if isinstance(plan_of(positions, width, groups), Held) else 2
    return Cost((n * positions * (reads + 1) + 3) * width * itemsize)


def _variants(positions: int, width: int, dtype: str, *, shift: bool, silu: bool) -> list[Variant]:
    plan = plan_of(positions, width, 32)
    same = {"WIDTH": width, "GROUP": width // 32, "SHIFT": shift}

    def variant(kernel: Any, constants: dict[str, Any], warps: int) -> Variant:
        name = f"{width} @ {positions}{' shift' * shift}{' silu' * bool(constants.get('SILU'))} {dtype}"
        integers = dict.fromkeys(("positions", "shift_stride", "parts", "span"), "i32")
        kinds = integers | {"eps": "fp32", "partial": "*fp32"} | dict.fromkeys(constants, "constexpr")
        signature = {parameter: kinds.get(parameter, f"*{dtype}") for parameter in parameters(kernel)}
        return Variant(kernel, name, signature, constants, num_warps=warps, unaligned=("shift",), plugin=True)

    last = {"SILU": silu}
    if isinstance(plan, Held):
        return [variant(group_norm_held_kernel, same | last | plan.constants, plan.warps)]
    large = {"LARGE": needs_64_bits(positions, width, plan)}
    return [
        variant(group_norm_parts_kernel, same | large | plan.constants, PARTS_WARPS),
        variant(group_norm_apply_kernel, same | last | large | plan.apply_constants, 4),
    ]


# SD 1.5 at 512x512: (positions, channels) of every normalisation of the UNet, and of the decoder.
UNET = [(4096, 320), (4096, 640), (4096, 960), (1024, 320), (1024, 640), (1024, 960), (1024, 1280), (1024, 1920)]
UNET += [(256, 640), (256, 1280), (256, 1920), (256, 2560), (64, 1280), (64, 2560)]
DECODER = [(4096, 512), (16384, 512), (65536, 512), (65536, 256), (262144, 256), (262144, 128)]
LARGE = [(4096 * 4096, 128), (4096 * 4096, 256)]  # of a decoded picture of 4096x4096: 2^31 elements and twice that


def _listed() -> Iterator[Variant]:
    for positions, width in UNET + DECODER:
        for dtype in ("fp16", "bf16"):
            yield from _variants(positions, width, dtype, shift=False, silu=True)
    # With the time embedding before it (a resnet's second), and without SiLU behind it (a transformer's, whose shift
    # is a bias that the picture has ahead: engines/cuda/folds.py).
    for positions, width in ((4096, 320), (1024, 640), (256, 1280), (64, 1280)):
        yield from _variants(positions, width, "fp16", shift=True, silu=True)
        yield from _variants(positions, width, "fp16", shift=False, silu=False)
        yield from _variants(positions, width, "fp16", shift=True, silu=False)
    for positions, width in LARGE:
        yield from _variants(positions, width, "fp16", shift=False, silu=True)


# Sizes are no constants of the kernels: two pictures of as many channels may share one.
_distinct: dict[str, Variant] = {}
for _variant in _listed():
    _distinct.setdefault(f"{_variant.kernel} {_variant.signature} {_variant.constants}", _variant)
VARIANTS = list(_distinct.values())
