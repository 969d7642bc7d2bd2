"""The one thread that owns the device: seats, steps, decodes.

Everything that a backend does happens here, one thing at a time; a turn of the loop is: who has gone leaves,
who waits sits down, one lane steps, one finished picture is decoded. Files are made in a thread pool.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from engines.backend import F32, DeviceError, to_pixels
from engines.model import Model
from engines.stepper import HostStepper
from pipeline.errors import LatentdError
from pipeline.noise import standard_normal
from server import pictures
from server.admission import Admission
from server.batcher import Batcher
from server.errors import Cancelled, NotServing, PictureFailed, TooLate
from server.events import Done, Event, Failed, Image, Preview, Started, Step
from server.job import Job, Picture, Size
from server.metrics import Metrics

log = logging.getLogger("latentd.device")

_PREVIEWS = 3  # of one picture in the pool at once: steps that outrun the pool lose previews, not memory
_CONTEXTS = 128  # encoded prompts remembered: 30 MB at 77 tokens of width 768


class Device:
    """Owns the model's engines from `start` to `stop`. `died` is called once, from its thread, if the device fails."""

    def __init__(
        self,
        model: Model,
        sizes: list[Size],
        seats: int,
        admission: Admission,
        metrics: Metrics,
        workers: int,
        died: Callable[[], object],
    ) -> None:
        self.model = model
        self.seats = seats
        self.sizes = sizes
        self._batcher = Batcher(sizes, seats)
        self._admission = admission
        self._metrics = metrics
        self._died = died
        self._steppers = {size: HostStepper(model.backend.denoiser(*size, rows=2 * seats), seats) for size in sizes}
        self._row_seconds = {size: self._warm(size) for size in sizes}
        self._contexts: OrderedDict[bytes, F32] = OrderedDict()
        self._finished: deque[tuple[Picture, F32]] = deque()  # latents to decode
        self._changed = threading.Condition()  # guards the batcher and the two flags below
        self._stopping = False
        self._failed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        metrics.rows_capacity.set(2 * seats * len(sizes))

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Admit a job; returns how many pictures wait before it. Errors: Busy, TooLate, NotServing."""
        with self._changed:
            if self._failed or self._stopping:
                raise NotServing(
                    "the device has failed; the server is about to restart" if self._failed else "draining"
                )
            self._admission.check(job.wish, self._batcher, self._row_seconds, time.monotonic(), job.deadline)
            ahead = self._batcher.ahead_of(job.wish.priority)
            self._batcher.add(job)
            self._metrics.queue_depth.set(self._batcher.waiting_count)
            self._changed.notify()
        return ahead

    def stop(self) -> None:
        """End the thread; jobs that are still here fail. Returns when nothing touches the device any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        try:
            while self._wait():
                self._drop()
                self._seat()
                self._step()
                self._decode()
            error = NotServing("the server stopped before the request was done")
        except Exception as unexpected:
            log.exception("the device failed")
            self._failed = True
            error = NotServing(
                f"the device failed: {unexpected}" if isinstance(unexpected, LatentdError) else "the device failed"
            )
        with self._changed:
            self._stopping = True
            left = self._batcher.jobs() | {picture.job for picture, _ in self._finished}
            self._batcher.drop(left)
        for job in left:
            self._end(job, error)
        if self._failed:
            self._died()

    def _wait(self) -> bool:
        """Sleep until there is work; False when the thread is to end."""
        with self._changed:
            while self._batcher.idle and not self._finished and not self._stopping:
                self._changed.wait()
            return not self._stopping

    def _drop(self) -> None:
        """Cancelled and expired jobs leave their seats and the queue."""
        now = time.monotonic()
        with self._changed:
            gone = [job for job in self._batcher.jobs() if job.cancelled or (job.deadline or now + 1) <= now]
            if not gone:
                return
            seated = self._batcher.drop(gone)
            self._metrics.queue_depth.set(self._batcher.waiting_count)
        for size, seat in seated:
            self._steppers[size].leave(seat)
        for job in gone:
            self._metrics.cancelled("seat" if job.timings.seats else "queue")
            self._end(job, Cancelled("the client went away") if job.cancelled else TooLate("the deadline passed"))

    def _seat(self) -> None:
        """Who waits takes the free seats. After one prompt is encoded the others step first: it takes a while."""
        encoded = False
        while not encoded:
            with self._changed:
                place = self._batcher.seat_next()
                self._metrics.queue_depth.set(self._batcher.waiting_count)
            if place is None:
                return
            size, seat, picture = place
            job, wish = picture.job, picture.job.wish
            picture.seated_at = start = time.monotonic()
            context, encoded = self._encode(wish.ids)
            negative = None
            if wish.negative_ids is not None:
                negative, also = self._encode(wish.negative_ids)
                encoded = encoded or also
            noise = standard_normal(wish.picture_seed(picture.index), self.model.spec.latent_shape(*size))[0]
            self._steppers[size].sit(seat, wish.table, noise, context, negative, wish.guidance)
            job.timings.queue_ms = max(job.timings.queue_ms, 1e3 * (start - job.arrived))
            job.timings.encode_ms += 1e3 * (time.monotonic() - start) if encoded else 0.0
            self._metrics.queue_seconds.observe(start - job.arrived)
            job.mailbox.post(Started(picture.index))

    def _encode(self, ids: NDArray[np.int64]) -> tuple[F32, bool]:
        """Context [tokens, width] of token ids, and whether it had to be computed."""
        key = ids.tobytes()
        if (known := self._contexts.get(key)) is not None:
            self._contexts.move_to_end(key)
            return known, False
        context = self._contexts[key] = self.model.backend.encode(ids)
        if len(self._contexts) > _CONTEXTS:
            self._contexts.popitem(last=False)
        return context, True

    def _step(self) -> None:
        """One evaluation of the lane whose turn it is."""
        size = self._batcher.next_lane()
        if size is None:
            return
        lane, stepper = self._batcher.lanes[size], self._steppers[size]
        seats = lane.live
        tenants = {seat: tenant for seat in seats if (tenant := lane.tenants[seat])}
        wanted = [seat for seat, picture in tenants.items() if _wants_preview(picture)]
        rows = sum(picture.job.wish.rows for picture in tenants.values())
        self._metrics.rows_live.set(rows)
        start = time.monotonic()
        stepper.step(seats, predict=wanted)
        took = time.monotonic() - start
        lane.spent += took
        # A moving average: forecasts follow the machine's load within some ten steps.
        self._row_seconds[size] += 0.1 * (took / rows - self._row_seconds[size])
        self._metrics.step_seconds.observe(took)
        self._metrics.steps_total.inc()
        for seat, picture in tenants.items():
            self._after_step(stepper, size, seat, picture, len(seats), start, preview=seat in wanted)
        if not any(other.live for other in self._batcher.lanes.values()):
            self._metrics.rows_live.set(0)

    def _after_step(
        self, stepper: HostStepper, size: Size, seat: int, picture: Picture, live: int, start: float, *, preview: bool
    ) -> None:
        job, wish = picture.job, picture.job.wish
        picture.reached = stepper.reached(seat)
        job.timings.seats.append(live)
        done = int(wish.table.steps_done[picture.reached - 1])
        job.mailbox.post(Step(picture.index, done, wish.steps))
        if preview:
            picture.previews_under_way += 1
            self._pool.submit(self._preview, picture, done, stepper.prediction(seat))
        if stepper.finished(seat):
            latents = stepper.latents(seat)
            stepper.leave(seat)
            with self._changed:
                self._batcher.free(size, seat)
            job.timings.denoise_ms += 1e3 * (time.monotonic() - picture.seated_at)
            self._finished.append((picture, latents))

    def _decode(self) -> None:
        """One finished picture. What is not a number fails alone."""
        if not self._finished:
            return
        picture, latents = self._finished.popleft()
        if picture.job.cancelled:
            self._settle(picture, Cancelled("the client went away"))
            return
        start = time.monotonic()
        if not np.isfinite(latents).all():
            self._metrics.nan_images_total.inc()
            self._settle(picture, PictureFailed(f"image {picture.index} came out as not a number"))
            return
        try:
            pixels = to_pixels(self.model.backend.decode(latents))
        except DeviceError:
            raise
        except Exception:
            log.exception("request=%s image %d cannot be decoded", picture.job.id, picture.index)
            self._settle(picture, PictureFailed(f"image {picture.index} cannot be decoded"))
            return
        self._pool.submit(self._file, picture, pixels, start)

    def _file(self, picture: Picture, pixels: NDArray[np.uint8], start: float) -> None:
        """In the pool: pixels to a file, and on its way."""
        job, wish = picture.job, picture.job.wish
        try:
            data = pictures.encode(pixels, wish.format)
        except Exception:
            log.exception("request=%s image %d cannot be written as %s", job.id, picture.index, wish.format)
            self._settle(picture, PictureFailed(f"image {picture.index} cannot be written as {wish.format}"))
            return
        job.timings.decode_ms += 1e3 * (time.monotonic() - start)
        self._metrics.images_total.inc()
        self._settle(picture, Image(picture.index, data, wish.picture_seed(picture.index)))

    def _preview(self, picture: Picture, step: int, prediction: F32) -> None:
        """In the pool: x0 to colours."""
        job = picture.job
        try:
            jpeg = pictures.preview(prediction, self.model.artifact.preview, *job.wish.size)
            job.mailbox.post(Preview(picture.index, step, jpeg))
            if not job.previewed:
                job.previewed = True
                self._metrics.preview_first_seconds.observe(time.monotonic() - job.arrived)
        except Exception:
            log.exception("request=%s preview of image %d failed", job.id, picture.index)
        finally:
            picture.previews_under_way -= 1

    def _settle(self, picture: Picture, outcome: Image | LatentdError) -> None:
        """A picture is delivered or failed; the last one ends its job."""
        job = picture.job
        with job.lock:
            job.left -= 1
            last = job.left == 0
            if isinstance(outcome, LatentdError):
                job.failures.append(outcome)
            else:
                job.mailbox.post(outcome)
        if last:
            self._end(job, job.failures[0] if job.failures else None)

    def _end(self, job: Job, error: LatentdError | None) -> None:
        event: Event = Failed(error) if error else Done(job.timings)
        job.mailbox.post(event)

    def _warm(self, size: Size) -> float:
        """Seconds a row, measured on the second of two steps of two rows; the first one warms the engine up."""
        denoiser = self._steppers[size].denoiser
        denoiser.timesteps[:2] = 1.0
        took = 0.0
        for _ in range(2):
            start = time.monotonic()
            denoiser.run([0, 1])
            took = time.monotonic() - start
        self.model.backend.decode(np.zeros(self.model.spec.latent_shape(*size), np.float32))
        return took / 2


def _wants_preview(picture: Picture) -> bool:
    """Is a preview due after the coming evaluation? Never after the last: the picture itself follows."""
    wish = picture.job.wish
    if not wish.preview_every or picture.previews_under_way >= _PREVIEWS or picture.evaluations_left == 1:
        return False
    return int(wish.table.steps_done[picture.reached]) % wish.preview_every == 0
