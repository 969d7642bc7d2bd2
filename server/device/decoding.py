"""Finished latents to pixels, on the device, beside the steps where the device can."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from engines.backend import Backend, Pending
from pipeline.arrays import F32, Pixels
from server.device.delivery import Delivery
from server.errors import PictureFailed
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.pace import Pace

_AT_ONCE = 2  # the second's kernels follow the first's without a gap, and a third may still be cancelled


class Decoding:
    """Decodes finished pictures, two at once at most. Used by the device thread."""

    def __init__(self, backend: Backend, delivery: Delivery, pace: Pace, metrics: Metrics) -> None:
        self._backend, self._delivery, self._pace, self._metrics = backend, delivery, pace, metrics
        self._waiting: deque[tuple[Picture, Pending[F32]]] = deque()
        self._begun: deque[tuple[Picture, Pending[Pixels | None]]] = deque()

    @property
    def pictures(self) -> list[Picture]:
        """List the pictures that have not been delivered."""
        return [entry[0] for entry in (*self._waiting, *self._begun)]

    @property
    def may_begin(self) -> bool:
        return bool(self._waiting) and len(self._begun) < _AT_ONCE

    @property
    def at_work(self) -> bool:
        """Return whether the decoding of a picture is begun: it may be ready at any moment."""
        return bool(self._begun)

    def add(self, picture: Picture, latents: Pending[F32]) -> None:
        self._waiting.append((picture, latents))

    def next(self) -> tuple[Picture, Pending[F32]]:
        """Take the first picture that waits; `may_begin` says that one does."""
        return self._waiting.popleft()

    def leave(self, jobs: Iterable[Job]) -> None:
        """Give up the pictures of these jobs that wait."""
        gone = set(jobs)
        self._waiting = deque(entry for entry in self._waiting if entry[0].job not in gone)

    def begin(self, picture: Picture, latents: Pending[F32]) -> None:
        """Begin to decode a picture. Errors: those of Backend.picture."""
        picture.decoding = time.monotonic()
        self._begun.append((picture, self._backend.picture(latents)))
        picture.released = time.monotonic()
        self._pace.decoded(picture.job.wish.size, picture.released - picture.decoding)

    def deliver(self) -> int:
        """Deliver the pictures that are decoded; returns how many. One that is not a number fails alone.

        Errors: DeviceError.
        """
        count = 0
        while self._begun and self._begun[0][1].ready():
            picture, pending = self._begun.popleft()
            count += 1
            if (pixels := pending.get()) is not None:
                picture.decoded = time.monotonic()
                self._delivery.picture(picture, pixels)
                continue
            self._metrics.nan_images_total.inc()
            self._delivery.settle(picture, PictureFailed(f"image {picture.index} came out as not a number"))
        return count
