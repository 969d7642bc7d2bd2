"""How a backend steps and delivers whose networks work on host arrays."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engines.backend import Denoiser, Pending, Ready, Stepper
from engines.cpu.stepper import HostStepper
from pipeline.arrays import F32, Pixels, to_pixels


class _Networks(Protocol):
    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> Denoiser: ...

    def decode(self, latents: F32) -> F32: ...


class HostBackend:
    """Seats are numpy arrays over the backend's own denoiser, and a picture is decoded while the caller waits."""

    def stepper(self: _Networks, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150) -> Stepper:
        """See Backend.stepper; any number of steps, as nothing is laid out for it."""
        return HostStepper(self.denoiser(width, height, rows=2 * seats, chunks=chunks), seats)

    def row_seconds(self, width: int, height: int, chunks: int) -> float | None:
        return None

    def picture(self: _Networks, latents: Pending[F32]) -> Pending[Pixels | None]:
        x = latents.get()
        picture = self.decode(x) if np.isfinite(x).all() else None
        return Ready(None if picture is None or not np.isfinite(picture).all() else to_pixels(picture))
