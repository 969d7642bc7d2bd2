"""The part that every backend shares whose networks work on host arrays: how it steps and how it delivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Denoiser, Pending, Ready, Stepper
from engines.cache import devices
from engines.cpu.stepper import HostStepper
from graphs import ports
from pipeline.arrays import F32, Pixels, to_pixels
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora
from pipeline.spec import Spec


class HostBackend(ABC):
    """The part of engines.backend.Backend that every CPU backend shares.

    Seats are numpy arrays over the backend's own denoiser, and a picture is decoded while the caller waits.
    """

    pixels = "exact"  # a row is a call of its own
    lora_dtype = "float32"

    @abstractmethod
    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> Denoiser:
        """See Backend.denoiser."""

    @abstractmethod
    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        """See Backend.encode_text."""

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        """See Backend.encode."""
        return self.encode_text(ids, skip).context

    @abstractmethod
    def decode(self, latents: F32) -> F32:
        """See Backend.decode."""

    def together(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> Denoiser:
        """See Backend.together: there are no batches here."""
        return self.denoiser(width, height, rows, chunks, rank)

    def stepper(self, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150, rank: int = 0) -> Stepper:
        """See Backend.stepper; any number of steps, as nothing is laid out for it."""
        return HostStepper(self.denoiser(width, height, rows=2 * seats, chunks=chunks, rank=rank), seats)

    def row_seconds(self, width: int, height: int, chunks: int, rank: int = 0) -> float | None:
        """See Backend.row_seconds."""
        return None

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        """See Backend.picture."""
        x = latents.get()
        picture = self.decode(x) if np.isfinite(x).all() else None
        return Ready(None if picture is None or not np.isfinite(picture).all() else to_pixels(picture))

    def identity(self) -> dict[str, Any]:
        """See Backend.identity."""
        return {}

    def identities(self, width: int, height: int) -> dict[str, dict[str, Any]]:
        """See Backend.identities: engines are compiled from memory, and none is kept."""
        return {}

    def device_key(self) -> str:
        """See Backend.device_key."""
        return devices.this_cpu()


def encoded(spec: Spec, outputs: Sequence[F32], skip: int) -> Encoded:
    """Take a text out of what the text encoder's graph gives for it (ports.outputs): copies, without `skip` layers."""
    given = dict(zip(ports.outputs("text_encoder", spec), outputs, strict=True))
    context, pooled = given["skipped"][skip - 1] if skip else given["context"], given.get("pooled")
    return Encoded(context.copy(), None if pooled is None else pooled.copy())
