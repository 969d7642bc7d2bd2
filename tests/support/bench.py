"""The captured step on CPU tensors, with its replays counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.cuda.network import TorchNetwork
from engines.cuda.plain import guided_step
from engines.cuda.seats import Seats
from engines.cuda.stepper import CudaStepper
from engines.cuda.stream import Stream
from engines.model import Model
from tests.support.toy import SEATS, SHAPE, STEPS, Toy

CPU = torch.device("cpu")


class Bench:
    """A stepper on CPU tensors whose replays are counted: by what, and how often."""

    def __init__(self, make: Callable[[Stream], CudaStepper]) -> None:
        self.replays: Counter[int] = Counter()
        self.captured: list[Any] = []
        self.stream = Stream(CPU)
        self.stream.captured = self._captured  # type: ignore[method-assign]
        self.stepper = make(self.stream)

    def _captured(self, run: Callable[[], None]) -> Callable[[], None]:
        number = len(self.captured)
        self.captured.append(run)

        def replay() -> None:
            self.replays[number] += 1
            run()

        return replay

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Every tensor that a graph could have the address of."""
        stepper = self.stepper
        found = {f"{i}.{f.name}": getattr(g, f.name) for i, g in enumerate(stepper._groups) for f in fields(g)}
        return found | {name: getattr(stepper, name) for name in ("_layout", "_row_texts") if hasattr(stepper, name)}


def bounded_step(seats: Seats, outputs: Tensor) -> None:
    """Triton's kernel would read whatever lies where a row points to."""
    moving = seats.row[(seats.row[:, 0] >= 0) & (seats.step < seats.last)]
    assert not len(moving) or int(moving.max()) < len(outputs), "a row beyond its bucket"
    guided_step(seats, outputs)


def toy_bench(exact: bool, seats: int = SEATS, seen: int = 0) -> Bench:
    kernels = replace(plain_kernels(), guided_step=bounded_step)

    def make(stream: Stream) -> CudaStepper:
        return CudaStepper(Toy(seen=seen), kernels, SHAPE, seats, STEPS, stream, stream, exact=exact)

    return Bench(make)


def real_bench(model: Model, exact: bool, seats: int = SEATS) -> Bench:
    backend = CudaBackend(
        model.checkpoint, "f32", pixels="exact" if exact else "fast", device="cpu", kernels=plain_kernels()
    )
    default, modules = model.spec.defaults, cast(Any, backend._networks)
    modules._networks[1] = TorchNetwork(modules._unet, modules._tokens, twins=True)  # the harder form, off by default

    def make(stream: Stream) -> CudaStepper:
        backend._stepping = stream
        return backend.stepper(default.width, default.height, seats, steps=STEPS)

    return Bench(make)
