"""Of the section `kernels`: the update of all seats, and pictures to bytes, beside the same in torch's own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import error, in_graph
from pipeline.samplers import STATE

_EVALUATIONS = 30


def cases(report: Report) -> Iterator[Case]:
    for seats in (2,) if report.dry else (16, 1):
        yield Case(f"guided_step {seats} seats", partial(guided_step, report, seats))
    for pictures in (2,) if report.dry else (1, 4):
        yield Case(f"to_uint8 {pictures}", partial(to_uint8, report, pictures))


def launches(report: Report) -> Iterator[Callable[[], object]]:
    """Launch the pixel kernels, so that they are compiled."""
    kernels, outputs = needed("kernels.guided_step", "guided_step"), _outputs(report, _seats(report, 1), 1)
    yield lambda: kernels(_seats(report, 1), outputs)
    pictures = torch.randn(1, 3, 512, 512, device=report.device).to(report.dtype)
    yield lambda: needed("kernels.to_uint8", "to_uint8")(pictures.contiguous(memory_format=torch.channels_last))


def _outputs(report: Report, seats: Any, count: int) -> Tensor:
    outputs = torch.randn(2 * count, *seats.state.shape[2:], device=report.device).to(report.dtype)
    return outputs.contiguous(memory_format=torch.channels_last)


def _seats(report: Report, count: int) -> Any:
    """Make guided seats somewhere in tables of random numbers; of several one has finished, every other has a mask."""
    empty_seats = needed("engines.cuda.seats", "empty_seats")
    side = 8 if report.dry else 64
    like = (1, report.dtype)
    seats = empty_seats((4, side, side), count, _EVALUATIONS, like, like, report.device)
    for name in ("state", "noise", "matrices", "original", "first_noise", "blend"):
        getattr(seats, name).normal_()
    seats.predictions.fill_(float("nan"))
    seats.guidance.uniform_(2, 9)
    seats.mask.uniform_(0, 1)
    seats.masked[1::2] = 1
    seats.draw.random_(0, _EVALUATIONS - 1)
    seats.step.random_(1, _EVALUATIONS)
    seats.last.fill_(_EVALUATIONS)
    if count > 1:
        seats.last[0] = seats.step[0]
    seats.row.copy_(torch.arange(2 * count, device=report.device).view(count, 2))
    return seats


def _right(seats: Any, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Compute state and predictions after the step, in float64, of the seats that move."""
    who = torch.arange(len(seats.step), device=outputs.device)
    positive, negative = outputs.double()[0::2], outputs.double()[1::2]
    out = negative + seats.guidance.double()[:, None, None, None] * (positive - negative)
    noise = seats.noise[who, seats.draw[who, seats.step.long()].long()].double()
    terms = torch.cat([seats.state.double(), out[:, None], noise[:, None]], dim=1)  # [S, 7, C, h, w]
    product = torch.einsum("sij,sjchw->sichw", seats.matrices[who, seats.step.long()].double(), terms)
    picture, noise = seats.blend[who, seats.step.long()].double().T[..., None, None, None]
    known = picture * seats.original.double() + noise * seats.first_noise.double()
    mask = torch.where(seats.masked[:, None, None] != 0, seats.mask.double(), 1.0)[:, None]
    product[:, 0] = mask * product[:, 0] + (1 - mask) * known
    return product[:, :STATE], product[:, STATE]


def guided_step(report: Report, count: int) -> None:
    kernel = needed("kernels.guided_step", "guided_step")
    seats, case = _seats(report, count), f"{count} seats"
    outputs = _outputs(report, seats, count)
    right, before = _right(seats, outputs), seats.state.clone()
    moves = seats.step < seats.last
    seats.step_next.fill_(-1)
    kernel(seats, outputs)
    state = error(seats.state[moves], right[0][moves])
    predicted = error(seats.predictions[moves], right[1][moves])
    # All in float32: seven products of numbers of order one to nine, summed.
    report.expect(max(state, predicted) < 1e-5, "guided_step error", case, "ours", max(state, predicted))
    counted = torch.equal(seats.step_next, seats.step + moves)
    left_alone = torch.equal(seats.state[~moves], before[~moves])
    report.expect(counted and left_alone, "guided_step finished", case, "ours", 0.0, "who has finished is left alone")
    seats.masked.zero_()  # timed as most steps are
    # Without what a seat's table adds: state read and written, predictions written, noise and outputs read.
    moved = seats.state.nbytes * 2 + seats.predictions.nbytes * 2 + outputs.nbytes
    seats.last.fill_(1 << 30)  # step is never advanced here, so every run does all the work
    report.time("guided_step", case, "ours", in_graph([lambda: kernel(seats, outputs)] * 8), moved=moved)
    plain = needed("engines.cuda.plain", "guided_step")
    report.time("guided_step", case, "torch", in_graph([lambda: plain(seats, outputs)] * 8), moved=moved)


def to_uint8(report: Report, pictures: int) -> None:
    kernel, side, case = needed("kernels.to_uint8", "to_uint8"), 16 if report.dry else 512, f"{pictures} pictures"
    x = torch.randn(pictures, 3, side, side, device=report.device).to(report.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    got, flags = kernel(x)
    right = ((x.double() * 0.5 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    off = float((got.double() - right).abs().max())
    # In float32 a product may fall on the other side of a half.
    good = off <= 1 and float((got.double() != right).double().mean()) < 1e-3 and not flags.any()
    report.expect(good, "to_uint8 error", case, "ours", off, "levels, of 255")
    x[-1, 0, 0, 0] = float("nan")
    flags = kernel(x)[1]
    report.expect(bool(flags[-1]) and int(flags.bool().sum()) == 1, "to_uint8 nan", case, "ours", float(flags.sum()))
    x[-1, 0, 0, 0] = 0
    moved = x.nbytes + got.nbytes
    report.time("to_uint8", case, "ours", in_graph([lambda: kernel(x)] * 8), moved=moved)
