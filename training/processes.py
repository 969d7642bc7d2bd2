"""Several processes that train one network, as torchrun starts them: each takes its share of a batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import Deserted, TrainingError

# One may wait for what another does alone: encode a bank, judge a checkpoint. After half an hour, as torch has it, the
# wait would end the run, and each time it is begun again. Who has ended closes its connections, and is not waited for.
_PATIENCE = timedelta(days=7)  # 2^31 milliseconds are 24.8


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes files and reports."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Return the places of a batch that are this process's. Errors: TrainingError where it has no equal shares."""
        if batch % self.count:
            raise TrainingError(f"a batch of {batch} has no {self.count} equal shares; give batch a multiple of it")
        size = batch // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def mean_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, which all have the same parameters."""
        if self.count == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _together():
            dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, figures: Tensor) -> Tensor:
        """Return the mean of [n] figures over the processes."""
        if self.count > 1:
            with _together():
                dist.all_reduce(figures)
            figures /= self.count
        return figures

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the batch; gradients go back to whose rows they are."""
        return rows if self.count == 1 else _Gathered.apply(rows, self)  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            with _together():
                dist.barrier()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Do what takes all processes. Errors: Deserted where one has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo's; NCCL's is one as well
        raise Deserted(f"another process that trains with this one has left: {error}") from error


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        parts = [torch.empty_like(rows) for _ in range(processes.count)]
        with _together():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        with _together():
            dist.all_reduce(gradient)  # every process's loss depends on these rows
        share = ctx.processes.share(len(gradient))
        return gradient[share.start : share.stop], None


def check_device(device: str) -> None:
    """Compare a device with what this machine has. Errors: TrainingError."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device is cuda; torch sees no NVIDIA GPU here")


def begin(device: str) -> Processes:
    """Join the processes that torchrun started, or be the only one. Errors: TrainingError."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Processes()
    check_device(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return Processes(dist.get_rank(), dist.get_world_size())


def end() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
