"""A backend that a test can hold at a step, count, and break; the real one does the work."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Backend, Denoiser
from engines.cpu.host import HostBackend
from engines.model import Model
from pipeline.arrays import F32
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora
from tests.support.patience import PATIENCE


class Held(HostBackend):
    """`before_*` may raise, `after_run` may spoil the outputs of the rows that ran."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.precision, self.spec = backend.name, backend.precision, backend.spec
        self.makes_beside, self.lora_dtype = backend.makes_beside, backend.lora_dtype
        self.runs: list[list[int]] = []  # the rows of each step that was begun
        self.encoded: list[NDArray[np.int64]] = []
        self.decoded = 0  # pictures whose decoding was begun
        self.before_run: Callable[[], None] = lambda: None
        self.before_encode: Callable[[], None] = lambda: None
        self.before_decode: Callable[[], None] = lambda: None
        self.before_denoiser: Callable[[], None] = lambda: None
        self.before_moments: Callable[[], None] = lambda: None
        self.after_run: Callable[[Denoiser, Sequence[int]], None] = lambda denoiser, rows: None
        self.after_decode: Callable[[F32], F32] = lambda picture: picture
        self._holding = False
        self._begun, self._permits = threading.Semaphore(0), threading.Semaphore(0)

    def hold(self) -> None:
        """From now on each step waits, before it computes, until `let` or `release`; what was let before is void."""
        self._begun, self._permits = threading.Semaphore(0), threading.Semaphore(0)
        self._holding = True

    def begun(self) -> None:
        """Returns when one more step waits."""
        assert self._begun.acquire(timeout=PATIENCE), "no step was begun"

    def let(self) -> None:
        """One step, the one that waits, may go on."""
        self._permits.release()

    def release(self) -> None:
        self._holding = False
        self._permits.release(1000)

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        self.encoded.append(ids)
        self.before_encode()
        return self._backend.encode_text(ids, skip, lora)

    def decode(self, latents: F32) -> F32:
        self.decoded += 1
        self.before_decode()
        return self.after_decode(self._backend.decode(latents))

    def moments(self, picture: F32) -> F32:
        self.before_moments()
        return self._backend.moments(picture)

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> Denoiser:
        self.before_denoiser()
        return _HeldDenoiser(self, self._backend.denoiser(width, height, rows, chunks, rank))

    def _enter(self, rows: Sequence[int]) -> None:
        self.runs.append(list(rows))
        if self._holding:
            self._begun.release()
            assert self._permits.acquire(timeout=PATIENCE), "the test forgot a step"
        self.before_run()


class _HeldDenoiser:
    def __init__(self, held: Held, denoiser: Denoiser) -> None:
        self._held, self._denoiser = held, denoiser
        self.samples, self.timesteps = denoiser.samples, denoiser.timesteps
        self.contexts, self.guidance, self.outputs = denoiser.contexts, denoiser.guidance, denoiser.outputs
        self.put, self.put_style, self.put_lora = denoiser.put, denoiser.put_style, denoiser.put_lora

    def run(self, rows: Sequence[int]) -> None:
        self._held._enter(rows)
        self._denoiser.run(rows)
        self._held.after_run(self._denoiser, rows)


def wrapped(model: Model, held: Held) -> Model:
    return dataclasses.replace(model, backend=held)


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def eventually(what: Callable[[], Any], expected: Any) -> None:
    """For what happens on the far side of a socket, where no event can be had."""
    end = time.monotonic() + PATIENCE
    while (got := what()) != expected:
        assert time.monotonic() < end, f"{got!r} did not become {expected!r}"
        time.sleep(0.005)
