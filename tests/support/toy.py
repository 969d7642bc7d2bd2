"""A network without batches: each row a function of itself alone, so that steppers can be compared to the bit."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engines.cpu.stepper import HostStepper
from engines.cuda.network import bucket_sizes
from engines.cuda.stepper import CudaStepper
from engines.model import Model
from engines.seat import Sitting
from model.ops import spread
from pipeline.arrays import F32
from pipeline.conditions.style import Style
from pipeline.loras.lora import Lora
from pipeline.noise import standard_normal
from tests.support.requests import Request, conditions_of, table_of

SEATS, STEPS = 4, 8
SHAPE, TOKENS, WIDTH = (3, 8, 8), 4, 6  # of the toy network


class Toy:
    """Stands for a UNet, on both sides: each row a function of itself alone, whose bits no batch can change."""

    text_width, time_width = TOKENS * WIDTH, 2
    text_dtype = time_dtype = sample_dtype = torch.float32
    twins = True

    def __init__(self, rows: int = 2 * SEATS, seen: int = 0) -> None:
        """`seen`: channels behind those of x, as a UNet that inpaints has them."""
        self.seen = seen
        self.samples = np.zeros((rows, SHAPE[0] + seen, *SHAPE[1:]), np.float32)
        self.timesteps, self.guidance = np.zeros(rows, np.float32), np.ones(rows, np.float32)
        self.contexts, self.outputs = np.zeros((rows, TOKENS, WIDTH), np.float32), np.zeros((rows, *SHAPE), np.float32)

    def put(self, row: int, inputs: Mapping[str, F32]) -> None:
        assert not inputs

    def put_style(self, row: int, style: Style | None, which: int) -> None:
        assert style is None

    def put_lora(self, row: int, lora: Lora | None) -> None:
        assert lora is None

    def text(self, context: Tensor, style: object = None, beside: object = None) -> Tensor:
        return context.flatten()

    def time(self, timesteps: Tensor, guidance: Tensor) -> Tensor:
        return torch.stack([timesteps, guidance], dim=1)

    def denoise(self, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        t, g = times[:, 0, None, None, None], times[:, 1, None, None, None]
        first, last = texts[:, 0, None, None, None], texts[:, -1, None, None, None]
        samples = spread(samples, len(texts) // len(samples))
        samples, beside = samples[:, : SHAPE[0]], samples[:, SHAPE[0] :]
        out = samples * 0.75 - 0.5 * samples.abs() * first + 0.001 * t * last + 0.03125 * g
        return out + 0.125 * beside[:, :1] * beside[:, -1:] if self.seen else out

    def buckets(self, rows: int) -> list[int]:
        return bucket_sizes(rows)

    def run(self, rows: Sequence[int]) -> None:
        for row in rows:
            own = slice(row, row + 1)
            inputs = [torch.from_numpy(x[own]) for x in (self.samples, self.timesteps, self.guidance, self.contexts)]
            self.outputs[own] = self.denoise(
                inputs[0], self.time(inputs[1], inputs[2]), self.text(inputs[3])[None]
            ).numpy()


@functools.cache
def toy_context(words: str) -> F32:
    return np.random.default_rng(len(words) + sum(map(ord, words))).standard_normal((TOKENS, WIDTH), np.float32)


def toy_sit(stepper: CudaStepper | HostStepper, seat: int, model: Model, request: Request, seen: int = 0) -> None:
    run = table_of(model, request)
    noise = standard_normal(request.seed, SHAPE, draws=1 + run.draws)
    negative = toy_context(request.negative + "-") if request.guidance > 1 else None
    conditions, context = conditions_of(request, SHAPE), toy_context(request.prompt)
    if seen:
        conditions["seen"] = standard_normal(request.seed ^ 2, (seen, *SHAPE[1:]))[0]
    stepper.sit(seat, Sitting(run, noise, context, negative, request.guidance, **conditions))
