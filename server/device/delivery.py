"""From pixels to the client: files and previews are made in a thread pool; every job ends once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from engines.backend import Pending
from engines.clip.judge import Judge
from engines.preview import Preview as PreviewMap
from pipeline.arrays import F32
from pipeline.errors import LatentdError
from server.device import pictures
from server.errors import PictureFailed
from server.events import Done, Failed, Image, Preview
from server.job import Job, Judged, Picture
from server.metrics import Metrics
from server.pace.pace import Pace

log = logging.getLogger("latentd.delivery")


class Delivery:
    """Writes pictures and previews in a thread pool, and posts them to their clients.

    `ended` is called with each job at its end, before its client hears of it.
    """

    def __init__(
        self,
        workers: int,
        preview: PreviewMap,
        pace: Pace,
        metrics: Metrics,
        ended: Callable[[Job], object],
        judge: Judge | None = None,
    ) -> None:
        self._map = preview
        self._pace, self._metrics = pace, metrics
        self._ended = ended
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._judge = judge
        self._lock = threading.Lock()  # guards the number of pictures that wait for it
        self._judging = ThreadPoolExecutor(1, thread_name_prefix="judge")  # apart: a picture takes it up to seconds

    def picture(self, picture: Picture, pixels: NDArray[np.uint8]) -> None:
        """Write pixels [H, W, 3] to a file and post it; where the job keeps some, judge them first."""
        if picture.job.wish.keep is None:
            self._pool.submit(self._write, picture, pixels)
        else:
            self._unjudged(1)
            self._judging.submit(self._weigh, picture, pixels)

    def preview(self, picture: Picture, step: int, prediction: Pending[F32]) -> None:
        """Turn a prediction, x0 [C, h, w], into a preview and post it; the pool waits for the prediction."""
        with picture.job.lock:
            picture.previews_under_way += 1
        self._pool.submit(self._preview, picture, step, prediction)

    def settle(self, picture: Picture, outcome: Image | PictureFailed | None) -> None:
        """Note that a picture is delivered, has failed, or is none of those kept; a job's last picture ends the job."""
        job = picture.job
        with job.lock:
            picture.settled = True
            job.left -= 1
            last = job.left == 0
            if isinstance(outcome, PictureFailed):
                job.failures.append(outcome)
            elif not job.over:
                self._metrics.seat_steps_delivered_total.inc(picture.reached)
                if outcome is not None:
                    job.mailbox.post(outcome)
                    self._metrics.images_total.inc()
        if last:
            self.end(job, PictureFailed("; ".join(map(str, job.failures))) if job.failures else None)
        elif isinstance(outcome, PictureFailed):
            self._choose(job)

    def end(self, job: Job, error: LatentdError | None) -> None:
        """End a job: its client hears of the first end only, later ones change nothing."""
        with job.lock:
            first = not job.over
            job.end()
        if first:
            self._ended(job)
            job.mailbox.post(Failed(error) if error else Done(job.timings))

    @contextlib.contextmanager
    def judging(self, pictures: int) -> Iterator[None]:
        """Count pictures that are ranked during a block: the judge sees one at a time, whosesoever."""
        self._unjudged(pictures)
        try:
            yield
        finally:
            self._unjudged(-pictures)

    def close(self) -> None:
        """Wait until all that was handed in has been delivered. May be called twice."""
        self._judging.shutdown(wait=True)
        self._pool.shutdown(wait=True)

    def _write(self, picture: Picture, pixels: NDArray[np.uint8], score: float | None = None) -> None:
        job, wish = picture.job, picture.job.wish
        try:
            data = pictures.encode(_composed(picture, pixels), wish.format, wish.quality)
        except Exception:
            log.exception("image %d cannot be written", picture.index, extra={"request": job.id})
            self.settle(picture, PictureFailed(f"image {picture.index} cannot be written as {wish.format}"))
            return
        written = time.monotonic()
        if score is None:
            self._pace.written(wish.size, wish.format, written - picture.released)
        with job.lock:  # the last one stays: it ends the job
            job.timings.decoding, job.timings.decoded = picture.decoding, picture.decoded
            job.timings.written = written
        self.settle(picture, Image(picture.index, data, wish.picture_seed(picture.index), score))

    def _unjudged(self, more: int) -> None:
        with self._lock:
            self._pace.unjudged += more
            self._metrics.judge_backlog.set(self._pace.unjudged)

    def _weigh(self, picture: Picture, pixels: NDArray[np.uint8]) -> None:
        """Have the judge score a picture. Once all of its job's are scored, those nearest to the prompt are written."""
        job, judge, start = picture.job, self._judge, time.monotonic()
        if job.over:
            self._unjudged(-1)
            return
        try:
            assert judge is not None
            seen, words = judge.picture(_composed(picture, pixels)), judge.text(job.wish.words)
            score = float(judge.scores([seen], [words])[0, 0])
            self._pace.judged(time.monotonic() - start)
        except Exception:
            log.exception("image %d cannot be judged", picture.index, extra={"request": job.id})
            self.settle(picture, PictureFailed(f"image {picture.index} cannot be judged"))
            return
        finally:
            self._unjudged(-1)
        with job.lock:
            job.judged.append(Judged(score, picture, pixels))
        self._choose(job)

    def _choose(self, job: Job) -> None:
        """Write the pictures that are kept, of equals the first, once every picture is judged or has failed."""
        with job.lock:
            if len(job.judged) < job.left or not job.judged:
                return
            job.timings.judged = time.monotonic()
            judged, job.judged = sorted(job.judged, key=lambda each: (-each.score, each.picture.index)), []
        for each in judged[: job.wish.keep]:
            self._pool.submit(self._write, each.picture, each.pixels, each.score)
        for each in judged[job.wish.keep :]:
            self.settle(each.picture, None)

    def _preview(self, picture: Picture, step: int, prediction: Pending[F32]) -> None:
        job, jpeg = picture.job, b""
        try:
            if (colours := self._map.known) is not None:  # see Service.previews
                jpeg = pictures.preview(prediction.get(), colours, *job.wish.size)
        except Exception:
            log.exception("preview of image %d failed", picture.index, extra={"request": job.id})
        with job.lock:
            picture.previews_under_way -= 1
            # The pool has several threads: an older preview, or one after its picture, is of no use.
            if not jpeg or picture.settled or step < picture.previewed:
                return
            picture.previewed = step
            first, job.previewed = not job.previewed, True
            job.mailbox.post(Preview(picture.index, step, jpeg))
        if first:
            self._metrics.preview_first_seconds.observe(time.monotonic() - job.arrived)


def _composed(picture: Picture, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture as it is delivered: over its original, where it has one."""
    start = picture.job.wish.start
    return pixels if start is None else start.original.over(pixels)
