"""What each kernel computes, in plain torch: what runs on CPU tensors, and what stands in for them in tests.

The update is the host stepper's arithmetic (pipeline/update.py) in its order, so on a CPU the bits are the same,
but for the sign of a 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.cuda.seats import Seats
from model.ops import PLAIN
from pipeline.samplers import STATE


def guided_step(seats: Seats, outputs: Tensor) -> None:
    """Guide and advance by one evaluation each seat that has rows and has not finished.

    outputs [R, C, h, w] of any type. Writes `state`, `predictions` and `step_next`; all in float32.
    """
    outputs, count, everyone = outputs.float(), len(seats.step), torch.arange(len(seats.step), device=outputs.device)
    moves = (seats.row[:, 0] >= 0) & (seats.step < seats.last)  # [S]
    positive, negative = (outputs[seats.row[:, sign].clamp(0, len(outputs) - 1)] for sign in (0, 1))  # [S, C, h, w]
    guided = (positive - negative) * _wide(seats.guidance) + negative
    out = torch.where(_wide(seats.row[:, 1] >= 0), guided, positive)
    step = seats.step.clamp(max=seats.matrices.shape[1] - 1)
    matrix = seats.matrices[everyone, step]  # [S, 6, 7]
    draw = seats.draw[everyone, step]
    noise = torch.where(_wide(draw >= 0), seats.noise[everyone, draw.clamp(min=0)], 0.0)
    terms = torch.cat([seats.state, out[:, None], noise[:, None]], dim=1)  # [S, 7, C, h, w]
    total = terms.new_zeros(count, STATE + 1, *outputs.shape[1:])
    for i in range(STATE + 2):
        coefficient = matrix[:, :, i, None, None, None]
        # A term whose coefficient is zero is left out: 0 x NaN of a former tenant never enters.
        total = torch.where(coefficient == 0, total, total + coefficient * terms[:, i, None])
    total[:, 0] = _kept(seats, step, total[:, 0])
    seats.state.copy_(torch.where(_wide(moves)[..., None], total[:, :STATE], seats.state))
    seats.predictions.copy_(torch.where(_wide(moves), total[:, STATE], seats.predictions))
    seats.step_next.copy_(seats.step + moves)


def _kept(seats: Seats, step: Tensor, x: Tensor) -> Tensor:
    """Return x [S, C, h, w] after evaluation `step`, with the original where a seat has a mask that is not 1."""
    blend = seats.blend[torch.arange(len(step), device=step.device), step]  # [S, 2]
    known = torch.zeros_like(x)
    for i, term in enumerate((seats.original, seats.first_noise)):
        part = _wide(blend[:, i])
        known = torch.where(part == 0, known, known + part * term)
    mask = seats.mask[:, None]
    return torch.where((_wide(seats.masked) != 0) & (mask != 1), mask * x + (1 - mask) * known, x)


def to_uint8(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Round pictures [n, 3, H, W] in -1..1 half to even: uint8 [n, H, W, 3], and int32 [n], 1 if not a number."""
    picture = picture.float()
    broken = ~torch.isfinite(picture).flatten(1).all(dim=1)
    unit = torch.nan_to_num(picture * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), broken.to(torch.int32)


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False, out: Tensor | None = None
) -> Tensor:
    """See model.ops.Ops.attention; views whose last stride is 1."""
    return _into(out, PLAIN.attention(q, k, v, heads, causal))


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
    """Add shift [n, c] to x [n, c, h, w], channels_last, normalise it, and apply SiLU where `silu` says so."""
    y = F.group_norm(x if shift is None else x + shift[:, :, None, None], groups, weight, bias, eps)
    return _into(out, F.silu(y) if silu else y)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    shift: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Add shift [c] to x [.., c], and normalise it over the last dimension."""
    return _into(out, F.layer_norm(x if shift is None else x + shift, weight.shape, weight, bias, eps))


def geglu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply the first half of x [.., 2 c] by GELU of the second: [.., c]."""
    value, gate = x.chunk(2, dim=-1)
    return _into(out, value * F.gelu(gate))


def geglu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply geglu to a projection whose weights were interleaved: [.., in] -> [.., c], weight [2 c, in]."""
    pairs = F.linear(x, weight, bias).unflatten(-1, (-1, 2))
    return pairs[..., 0] * F.gelu(pairs[..., 1])


def interleave(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Order the rows of values and of gates in turn, as geglu_linear takes them."""

    def mixed(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2), dim=1).flatten(0, 1).contiguous()

    return mixed(weight), None if bias is None else mixed(bias)


def _wide(per_seat: Tensor) -> Tensor:
    return per_seat[:, None, None, None]


def _into(out: Tensor | None, y: Tensor) -> Tensor:
    return y if out is None else out.copy_(y)
