"""One evaluation of every seat, in place: guidance, the sampler's table, the step index, a mask where there is one.

    out = negative + g (positive - negative)                        Ho and Salimans 2022, eq. 6, extrapolating
    [x, h1..h4, x0] = M[step] [x, h1..h4, out, noise]               docs/design.md: a sampler is a table
    x = m x + (1 - m) (b0 original + b1 first noise)                Lugmayr et al. 2022, eq. 8: of masked seats, m < 1

The order of operations is pipeline/update.py's, term by term, and the launcher forbids fused multiply-adds: the bits
are the host's. A term whose coefficient is zero is neither loaded nor added, so nothing of a former tenant enters;
of a seat that is not masked neither mask nor picture nor first noise is loaded.

A program has some positions of one seat and all of their channels; nobody else reads or writes them. It reads
`step` and writes `step_next`, never what it reads: programs may run in any order. The caller copies one to the other.
"""

# ruff: noqa: ANN001, ANN201, N803 (a kernel's parameters have no types of Python's, and constants are capitals)
# pyright: reportGeneralTypeIssues=false
# (to pyright a static_range returns nothing)
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import triton
import triton.language as tl

from kernels.aot import Variant, parameters
from kernels.arguments import floats, require, require_aligned, require_contiguous, require_dtype, require_shape
from kernels.cost import Cost
from kernels.launch import launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

# A few numbers a program each, so that a view of some seats may begin anywhere; all other buffers are read 16 bytes at
# a time.
_SMALL = ("row", "guidance", "matrices", "draw", "step", "step_next", "last", "blend", "masked")
STATE, TERMS = 5, 7  # x and four of history; those, the UNet's output and noise
_TILE = 1024  # elements of a program, of one term: with 128 threads two loads of 16 bytes each


class Seats(Protocol):
    """The buffers of S seats, contiguous, for latents of C x h x w, E evaluations and D draws at the most.

    A seat without a positive row is empty, one without a negative row unguided (-1 either way). Empty and finished
    seats (step >= last) are left alone, bit for bit. Where `masked` is 0 the other four of a mask are not read.
    """

    state: Tensor  # f32 [S, 5, C, h, w], in place
    predictions: Tensor  # f32 [S, C, h, w], written: x0
    row: Tensor  # i32 [S, 2]: the positive and the negative row of the outputs
    guidance: Tensor  # f32 [S]
    matrices: Tensor  # f32 [S, E, 6, 7]
    draw: Tensor  # i32 [S, E]: which noise an evaluation takes, -1 for none
    noise: Tensor  # f32 [S, D, C, h, w]
    step: Tensor  # i32 [S]
    step_next: Tensor  # i32 [S], written: step + 1 where the seat lives, step elsewhere
    last: Tensor  # i32 [S]: evaluations of the tenant
    mask: Tensor  # f32 [S, h, w]: 1: x stays as it is, bit for bit
    original: Tensor  # f32 [S, C, h, w]
    first_noise: Tensor  # f32 [S, C, h, w]
    blend: Tensor  # f32 [S, E, 2]
    masked: Tensor  # i32 [S]: whether the seat has a mask


def reference(seats: Seats, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(state, predictions, step_next) in float64, from buffers that it leaves alone."""
    state, predictions = seats.state.double().clone(), seats.predictions.double().clone()
    following = seats.step.clone()
    for s, ((positive, negative), step) in enumerate(zip(seats.row.tolist(), seats.step.tolist(), strict=True)):
        if positive < 0 or step >= int(seats.last[s]):
            continue
        out = outputs[positive].double()
        if negative >= 0:
            out = outputs[negative].double() + seats.guidance[s].double() * (out - outputs[negative].double())
        draw = int(seats.draw[s, step])
        terms = [*seats.state[s].double(), out, seats.noise[s, draw].double() if draw >= 0 else 0 * out]
        for i, coefficients in enumerate(seats.matrices[s, step].tolist()):
            total = 0 * out + sum(c * term for c, term in zip(coefficients, terms, strict=True) if c)
            if i < STATE:
                state[s, i] = total
            else:
                predictions[s] = total
        if seats.masked[s]:
            m, (b0, b1) = seats.mask[s].double(), seats.blend[s, step].tolist()
            known = b0 * seats.original[s].double() + b1 * seats.first_noise[s].double()
            state[s, 0] = m * state[s, 0] + (1 - m) * known
        following[s] += 1
    return state, predictions, following


@triton.jit
def _add(total, coefficient, term):
    return tl.where(coefficient != 0, total + coefficient * term, total)


@triton.jit
def _column(at, J: tl.constexpr):
    """Column J of a matrix [6, 7], and whether any of it is not zero."""
    c0 = tl.load(at + J)
    c1 = tl.load(at + 7 + J)
    c2 = tl.load(at + 14 + J)
    c3 = tl.load(at + 21 + J)
    c4 = tl.load(at + 28 + J)
    c5 = tl.load(at + 35 + J)
    # By way of integers: the interpreter types a comparison as what it compares, and a mask of float32 is none.
    some = tl.where((c0 != 0) | (c1 != 0) | (c2 != 0) | (c3 != 0) | (c4 != 0) | (c5 != 0), 1, 0)
    return c0, c1, c2, c3, c4, c5, some != 0


@triton.jit(do_not_specialize=["evaluations", "draws"], do_not_specialize_on_alignment=list(_SMALL))
def guided_step_kernel(
    state, predictions, row, guidance, matrices, draw, noise, step, step_next, last,
    mask, original, first_noise, blend, masked, outputs, evaluations, draws,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, OUT_CHANNEL: tl.constexpr, OUT_POSITION: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """OUT_CHANNEL and OUT_POSITION: the strides of `outputs`. BLOCK: CHANNELS up to a power of two."""
    seat = tl.program_id(1).to(tl.int64)
    now = tl.load(step + seat)
    positive = tl.load(row + 2 * seat)
    negative = tl.load(row + 2 * seat + 1)
    live = (positive >= 0) & (now >= 0) & (now < tl.load(last + seat)) & (now < evaluations)
    tl.store(step_next + seat, now + live.to(tl.int32), mask=tl.program_id(0) == 0)
    if live:
        size: tl.constexpr = CHANNELS * POSITIONS
        channel = tl.arange(0, BLOCK)
        place = tl.program_id(0) * TILE + tl.arange(0, TILE)
        there = (channel < CHANNELS)[:, None] & (place < POSITIONS)[None, :]
        at = channel[:, None] * POSITIONS + place[None, :]
        evaluation = seat * evaluations + now
        has = tl.load(masked + seat) != 0
        matrix = matrices + evaluation * 42
        seat_state = state + seat * (5 * size) + at
        t0 = tl.full([BLOCK, TILE], 0.0, tl.float32)
        t1 = t0
        t2 = t0
        t3 = t0
        t4 = t0
        t5 = t0
        for j in tl.static_range(7):
            c0, c1, c2, c3, c4, c5, some = _column(matrix, j)
            if j < 5:
                term = tl.load(seat_state + j * size, mask=there & some, other=0.0)
            elif j == 5:
                out_at = outputs + channel[:, None] * OUT_CHANNEL + place[None, :] * OUT_POSITION
                p = tl.load(out_at + positive.to(tl.int64) * size, mask=there & some, other=0.0).to(tl.float32)
                guided = there & some & (negative >= 0)
                n = tl.load(out_at + negative.to(tl.int64) * size, mask=guided, other=0.0).to(tl.float32)
                term = tl.where(negative >= 0, (p - n) * tl.load(guidance + seat) + n, p)
            else:
                which = tl.load(draw + evaluation)
                drawn = there & some & (which >= 0) & (which < draws)
                term = tl.load(noise + (seat * draws + which) * size + at, mask=drawn, other=0.0)
            t0 = _add(t0, c0, term)
            t1 = _add(t1, c1, term)
            t2 = _add(t2, c2, term)
            t3 = _add(t3, c3, term)
            t4 = _add(t4, c4, term)
            t5 = _add(t5, c5, term)
        b0 = tl.load(blend + 2 * evaluation, mask=has, other=0.0)
        b1 = tl.load(blend + 2 * evaluation + 1, mask=has, other=0.0)
        m = tl.load(mask + seat * POSITIONS + place, mask=has & (place < POSITIONS), other=1.0)[None, :]
        first = tl.load(original + seat * size + at, mask=there & (tl.where(b0 != 0, 1, 0) != 0), other=0.0)
        second = tl.load(first_noise + seat * size + at, mask=there & (tl.where(b1 != 0, 1, 0) != 0), other=0.0)
        known = _add(_add(tl.full([BLOCK, TILE], 0.0, tl.float32), b0, first), b1, second)
        t0 = tl.where(m == 1.0, t0, m * t0 + (1.0 - m) * known)
        tl.store(seat_state, t0, mask=there)
        tl.store(seat_state + size, t1, mask=there)
        tl.store(seat_state + 2 * size, t2, mask=there)
        tl.store(seat_state + 3 * size, t3, mask=there)
        tl.store(seat_state + 4 * size, t4, mask=there)
        tl.store(predictions + seat * size + at, t5, mask=there)


def guided_step(seats: Seats, outputs: Tensor) -> None:
    """One evaluation of every live seat of `seats`, from outputs [R, C, h, w], contiguous or channels-last in memory,
    fp16, bf16 or f32. Writes state, predictions and step_next.

    ValueError for a buffer of another shape, type or layout, or, of those with latents or masks, not at a multiple of
    16 bytes. Indices of rows lie on the device and are not checked.
    """
    import torch

    count, _, channels, height, width = seats.state.shape
    evaluations, draws, latent = seats.matrices.shape[1], seats.noise.shape[1], (channels, height, width)
    whole, number = torch.int32, torch.float32
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "state": (number, (count, STATE, *latent)),
        "predictions": (number, (count, *latent)),
        "row": (whole, (count, 2)),
        "guidance": (number, (count,)),
        "matrices": (number, (count, evaluations, STATE + 1, TERMS)),
        "draw": (whole, (count, evaluations)),
        "noise": (number, (count, draws, *latent)),
        "step": (whole, (count,)),
        "step_next": (whole, (count,)),
        "last": (whole, (count,)),
        "mask": (number, (count, height, width)),
        "original": (number, (count, *latent)),
        "first_noise": (number, (count, *latent)),
        "blend": (number, (count, evaluations, 2)),
        "masked": (whole, (count,)),
    }
    buffers: dict[str, Any] = {name: getattr(seats, name) for name in wanted}
    for name, (dtype, shape) in wanted.items():
        require_shape(name, buffers[name], shape)
        require_dtype(name, buffers[name], dtype)
        require_contiguous(name, buffers[name])
    require(
        seats.step.data_ptr() != seats.step_next.data_ptr(), "step_next is step; programs read one, write the other"
    )
    require_dtype("outputs", outputs, *floats())
    require_shape("outputs", outputs, (len(outputs), *latent))
    last = outputs.is_contiguous(memory_format=torch.channels_last)
    require(
        last or outputs.is_contiguous(),
        f"outputs has strides {outputs.stride()}; it must be contiguous or channels_last",
    )
    require_aligned(outputs=outputs, **{name: x for name, x in buffers.items() if name not in _SMALL})
    require(
        STATE * channels * height * width < 2**31 and count <= 65535,
        f"state has shape {tuple(seats.state.shape)}: too large",
    )
    positions = height * width
    strides = (1, channels) if last and not outputs.is_contiguous() else (positions, 1)
    block = power_of_two(channels)
    tile = max(16, _TILE // block)
    launch(
        guided_step_kernel, (-(-positions // tile), count),
        *buffers.values(), outputs, evaluations, draws,
        channels, positions, *strides, block, tile,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def cost(
    seats: int,
    channels: int,
    positions: int,
    *,
    terms: int = TERMS,
    guided: bool = True,
    masked: bool = False,
    itemsize: int = 2,
) -> Cost:
    """Count live seats whose matrix uses `terms` columns (DDIM: x and out, 2): six are written whatever was read."""
    rows, known = 2 if guided else 1, 4 * (2 * channels + 1) if masked else 0
    return Cost(seats * positions * (channels * (4 * (terms - 1 + STATE + 1) + itemsize * rows) + known))


def _variant(positions: int, dtype: str, *, last: bool) -> Variant:
    constants = {
        "CHANNELS": 4,
        "POSITIONS": positions,
        "OUT_CHANNEL": 1 if last else positions,
        "OUT_POSITION": 4 if last else 1,
        "BLOCK": 4,
        "TILE": _TILE // 4,
    }
    kinds: dict[str, str] = dict.fromkeys(("row", "draw", "step", "step_next", "last", "masked"), "*i32")
    kinds |= {"outputs": f"*{dtype}", "evaluations": "i32", "draws": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in parameters(guided_step_kernel)}
    name = f"4x{positions} {'channels-last' if last else 'contiguous'} {dtype}"
    return Variant(guided_step_kernel, name, signature, constants, unaligned=_SMALL, fusion=False)


VARIANTS = [_variant(4096, dtype, last=last) for dtype in ("fp16", "bf16") for last in (True, False)]
VARIANTS += [_variant(9216, "fp16", last=True)]
