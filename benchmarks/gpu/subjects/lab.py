"""The captured step, set up for measuring: a stepper over random weights, and requests of random numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Report
from benchmarks.gpu.subjects.networks import SCHEDULE, TOKENS, our_kernels, ours, unet, unet_spec
from engines.seat import Sitting
from pipeline.noise import standard_normal
from pipeline.samplers import table

F32 = NDArray[np.float32]
# Deterministic and noisy ones, one and two evaluations a step, with and without history.
SAMPLERS = ("ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "pndm")


@dataclass(frozen=True)
class Request:
    sampler: str
    steps: int
    guidance: float
    seed: int


def random_request(rng: random.Random, seed: int, most: int = 8) -> Request:
    """Make a random request of 2 to `most` steps; one in four unguided."""
    guided = rng.random() < 0.75
    return Request(rng.choice(SAMPLERS), rng.randint(2, most), rng.uniform(1.5, 9.0) if guided else 1.0, seed)


class Lab:
    """Holds a stepper of `seats` seats for the UNet `name`. `eager`: the same work launched, not replayed.

    `buckets`: numbers of rows to capture; a server captures thirteen up to 32 rows, which takes a minute or more.
    `twins`: even ones as twins too. `measure`: let cuDNN measure its algorithms, in fast pixels; 0.1 to 1 s a shape.
    """

    def __init__(
        self,
        report: Report,
        name: str,
        seats: int,
        *,
        exact: bool = False,
        eager: bool = False,
        buckets: tuple[int, ...] | None = None,
        twins: bool = False,
        measure: bool = True,
    ) -> None:
        stepper, network = needed("engines.cuda.stepper", "CudaStepper"), needed("engines.cuda.network", "TorchNetwork")
        stream = needed("engines.cuda.stream", "Stream")
        self.report, self.name, self.spec = report, name, unet_spec(report, name)
        self.shape = (self.spec.in_channels, self.spec.sample_size, self.spec.sample_size)
        self.stream, self.side = stream(report.device), stream(report.device)
        self.copies = 2 if twins else 1  # rows of a text that a row of latents stands for
        if eager:
            self.stream.captured = lambda run: run
        # As the backend has it: nothing that a stopwatch chose may be in exact pixels.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = measure and not exact, exact
        net = unet(report, name, ops=ours(report))
        if not report.dry:
            torch.cuda.synchronize()  # the stream below does not wait for the one that the weights are made on
        with self.stream.here():
            captured = network(net, TOKENS, twins=twins)
        if buckets:
            captured.buckets = lambda rows: sorted({min(size, rows) for size in buckets})
        self.stepper: Any = stepper(
            captured, our_kernels(report), self.shape, seats, 50, self.stream, self.side, exact=exact
        )

    def sit(self, seat: int, request: Request) -> None:
        run, numbers = table(SCHEDULE, request.sampler, request.steps), np.random.default_rng(request.seed)
        context, negative = (
            numbers.standard_normal((TOKENS, self.spec.context_width), dtype=np.float32) for _ in range(2)
        )
        noise = standard_normal(request.seed, self.shape, draws=1 + run.draws)
        guided = negative if request.guidance > 1 else None
        self.stepper.sit(seat, Sitting(run, noise, context, guided, request.guidance))

    def latents(self, seat: int) -> F32:
        return self.stepper.pending_latents(seat).get()

    def alone(self, request: Request, seat: int = 0) -> F32:
        """Return the latents of a request that has the stepper for itself."""
        self.sit(seat, request)
        while not self.stepper.finished(seat):
            self.stepper.step([seat])
        x = self.latents(seat)
        self.stepper.leave(seat)
        return x

    def evaluations(self, requests: Sequence[Request], count: int) -> list[F32]:
        """Return the latents after `count` evaluations of all of them together, request i in seat i."""
        seats = list(range(len(requests)))
        for seat, request in zip(seats, requests, strict=True):
            self.sit(seat, request)
        for _ in range(count):
            self.stepper.step(seats)
        latents = [self.latents(seat) for seat in seats]
        for seat in seats:
            self.stepper.leave(seat)
        return latents


def apart(got: F32, right: F32) -> float:
    """Return the PSNR in dB over the range of `right`; 999 where they are equal, 0 where anything is not a number."""
    if np.array_equal(got, right):
        return 999.0
    worst = float(np.mean((got.astype(np.float64) - right) ** 2))
    span = float(right.max() - right.min())
    return 10 * float(np.log10(span**2 / worst)) if np.isfinite(worst) and worst else 0.0
