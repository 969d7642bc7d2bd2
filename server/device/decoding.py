"""Finished latents to pixels, on the device, beside the steps where the device can."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from engines.backend import Backend, Pending
from engines.errors import DeviceError, OutOfMemory
from pipeline.arrays import F32, Pixels
from pipeline.errors import LatentdError
from server.device.delivery import Delivery
from server.errors import PictureFailed
from server.job import Job, Picture
from server.metrics import Metrics

log = logging.getLogger("latentd.device")

_AT_ONCE = 2  # the second's kernels follow the first's without a gap, and a third may still be cancelled


class Decoding:
    """Used by the device thread. `refuse` ends a job whose picture has no room, and empties its seats."""

    def __init__(
        self, backend: Backend, delivery: Delivery, metrics: Metrics, refuse: Callable[[Job, LatentdError], object]
    ) -> None:
        self._backend, self._delivery, self._metrics, self._refuse = backend, delivery, metrics, refuse
        self._waiting: deque[tuple[Picture, Pending[F32]]] = deque()
        self._begun: deque[tuple[Picture, Pending[Pixels | None], float]] = deque()  # and when

    @property
    def pictures(self) -> list[Picture]:
        """All that have not been delivered."""
        return [entry[0] for entry in (*self._waiting, *self._begun)]

    @property
    def may_begin(self) -> bool:
        return bool(self._waiting) and len(self._begun) < _AT_ONCE

    @property
    def at_work(self) -> bool:
        """Is one begun, and may be ready at any moment?"""
        return bool(self._begun)

    def add(self, picture: Picture, latents: Pending[F32]) -> None:
        self._waiting.append((picture, latents))

    def begin(self) -> None:
        """Begin the next one; who has gone meanwhile is passed over. Errors: DeviceError."""
        picture, latents = self._waiting.popleft()
        if picture.job.over:
            return
        start = time.monotonic()
        try:
            self._begun.append((picture, self._backend.picture(latents), start))
        except DeviceError:
            raise
        except OutOfMemory as error:  # the device is intact
            self._refuse(picture.job, error)
        except Exception:
            log.exception("image %d cannot be decoded", picture.index, extra={"request": picture.job.id})
            self._delivery.settle(picture, PictureFailed(f"image {picture.index} cannot be decoded"))

    def deliver(self) -> int:
        """Those that are done; returns how many. What is not a number fails alone. Errors: DeviceError."""
        count = 0
        while self._begun and self._begun[0][1].ready():
            picture, pending, start = self._begun.popleft()
            count += 1
            if (pixels := pending.get()) is not None:
                self._delivery.picture(picture, pixels, start)
                continue
            self._metrics.nan_images_total.inc()
            self._delivery.settle(picture, PictureFailed(f"image {picture.index} came out as not a number"))
        return count
