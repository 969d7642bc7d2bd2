"""The buffers of a lane's seats, on the device: what a request is, as rows.

A step reads all of it and writes `state`, `predictions` and `step`; the host writes a seat when a picture sits down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.samplers import STATE


@dataclass
class Seats:
    """S seats, tables of up to E evaluations, D draws of noise. The names are those of kernels.guided_step."""

    state: Tensor  # float32 [S, 5, C, h, w]: x, h1..h4
    predictions: Tensor  # float32 [S, C, h, w]: x0 of the last evaluation
    row: Tensor  # int32 [S, 2]: rows of the UNet's output, positive and negative; -1: none
    guidance: Tensor  # float32 [S]
    matrices: Tensor  # float32 [S, E, 6, 7]
    draw: Tensor  # int32 [S, E]: which noise an evaluation uses; -1: none
    noise: Tensor  # float32 [S, D, C, h, w]
    step: Tensor  # int32 [S]: evaluations done; read by a step
    step_next: Tensor  # int32 [S]: written by it, so that no block reads what another has written
    last: Tensor  # int32 [S]: evaluations of the table; a seat that has reached it is left alone, an empty one has 0
    scales: Tensor  # float32 [S, E + 1]: what the UNet sees of x; one more, for who has finished
    times: Tensor  # [S, E + 1, time width]: what the network keeps of each timestep
    texts: Tensor  # [S, 2, text width]: what the network keeps of each prompt, positive and negative
    seen: Tensor  # float32 [S, C', h, w]: what the UNet sees beside x; C' is 0 of one that does not inpaint
    # Of a mask, for every seat: made when first wanted, the step would have to be captured again. 0.15 MB a seat of
    # SD 1.5 at 512x512, of 30.2; of a seat that is not masked a step reads `masked` and nothing else.
    mask: Tensor  # float32 [S, h, w]: 1: made anew
    original: Tensor  # float32 [S, C, h, w]
    first_noise: Tensor  # float32 [S, C, h, w]
    blend: Tensor  # float32 [S, E, 2]: how much of each an evaluation's x has where the mask is 0
    masked: Tensor  # int32 [S]: 1: these are the tenant's; 0: nobody reads them

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))


def empty_seats(
    shape: Sequence[int],
    seats: int,
    steps: int,
    time: tuple[int, torch.dtype],
    text: tuple[int, torch.dtype],
    device: torch.device,
    seen: int = 0,
) -> Seats:
    """Allocate seats for latents of `shape` [C, h, w] and tables of up to `steps` steps.

    `time` and `text` are the width and the type of what the network keeps, `seen` the channels that it sees beside x.
    All buffers are zeros: an empty seat is stepped over, and a row that belongs to nobody computes finite numbers.
    """
    evaluations, draws = 2 * steps, max(steps - 1, 1)  # Heun takes 2n - 1, no noisy sampler more than n

    def zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(sizes, dtype=dtype, device=device)

    i32 = torch.int32
    return Seats(
        state=zeros(seats, STATE, *shape),
        predictions=zeros(seats, *shape),
        row=zeros(seats, 2, dtype=i32) - 1,
        guidance=zeros(seats),
        matrices=zeros(seats, evaluations, STATE + 1, STATE + 2),
        draw=zeros(seats, evaluations, dtype=i32) - 1,
        noise=zeros(seats, draws, *shape),
        step=zeros(seats, dtype=i32),
        step_next=zeros(seats, dtype=i32),
        last=zeros(seats, dtype=i32),
        scales=zeros(seats, evaluations + 1),
        times=zeros(seats, evaluations + 1, time[0], dtype=time[1]),
        texts=zeros(seats, 2, text[0], dtype=text[1]),
        seen=zeros(seats, seen, *shape[1:]),
        mask=zeros(seats, *shape[1:]),
        original=zeros(seats, *shape),
        first_noise=zeros(seats, *shape),
        blend=zeros(seats, evaluations, 2),
        masked=zeros(seats, dtype=i32),
    )
