"""What it costs to let a request in, or not: `python -m benchmarks.attack.forecasts`.

The event loop waits for a forecast, and so does every other client's message. Queues of 12 and of 256 requests, of one
picture and of eight, of one caller and of fifty, before eight seats that are taken; another one comes, with a deadline
that it meets where all have one. And what comes before that: the request is checked, its prompt tokenised. Pure Python
on one core, with the embedded model's numbers; nothing is drawn.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import sys
import time
from collections.abc import Callable

from benchmarks.rows import Rows
from benchmarks.serving import ROOT
from engines.model import Model, load
from pipeline.checkpoint.opened import open_checkpoint
from server.batching.admission import Admission
from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import outlook
from server.job import Job
from server.limits import Limits
from server.mailbox import Mailbox
from server.pace.pace import Pace
from server.request import ImageRequest
from server.wish import Wish

SEATS, STEPS, ROW, DECODE = 8, 12, 0.005, 0.01  # about what the embedded model takes on two cores
QUEUES = ((12, 1, 1), (256, 1, 1), (256, 8, 1), (256, 8, 50))  # requests, pictures of each, callers
_PATIENT = Admission(queue_jobs=1000, queue_seconds=1e9)  # so that it is the forecast that is measured
_LATER = 1e6  # seconds: a deadline that everybody meets, so that all are played


class Queues:
    """Makes queues of requests to one model."""

    def __init__(self, model: Model) -> None:
        default = model.spec.defaults
        self._model, self._sizes, self._numbers = model, [(default.width, default.height)], itertools.count()
        self._loop = asyncio.new_event_loop()
        self.lane = self.wish().lane
        self.pace = Pace({self.lane: ROW})
        self.pace.decoded(self._sizes[0], DECODE)
        self.pace.encoded(1, DECODE)

    def wish(self, images: int = 1) -> Wish:
        """Check a request that nobody has made before."""
        request = ImageRequest(
            prompt=f"red apple number {next(self._numbers)}, color style", steps=STEPS, images=images
        )
        return Wish.of(request, self._model, self._sizes, Limits())

    def job(self, caller: int, images: int, deadline: float | None) -> Job:
        job = Job("", self.wish(images), Mailbox(self._loop), 0.0, deadline, f"caller {caller}")
        job.unencoded = 1
        return job

    def full(self, requests: int, images: int, callers: int, deadline: float | None) -> Batcher:
        """Return a batcher with full seats and so many requests that wait."""
        batcher = Batcher([self.lane], SEATS)
        for number in range(SEATS + requests):
            batcher.add(self.job(number % callers, images if number >= SEATS else 1, deadline))
            if number < SEATS:
                batcher.seat_next()
        return batcher

    def close(self) -> None:
        self._loop.close()


def timed(what: Callable[[], object], times: int) -> list[float]:
    """Return the milliseconds of processor time of each of so many times: neighbours do not count."""
    took = []
    for _ in range(times):
        start = time.thread_time()
        what()
        took.append(1e3 * (time.thread_time() - start))
    return took


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.attack.forecasts", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--times", type=int, default=50, help="of each (default 50)")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args(argv)
    rows = Rows("forecasts", ("numpy",), keep=not options.dry)
    queues = Queues(load(open_checkpoint(ROOT / "demo" / "small-things")))
    rows.add("check of a request", f"{STEPS} steps, a prompt of six words", "ms", timed(queues.wish, options.times))
    for requests, images, callers in QUEUES:
        shape = f"{requests} requests of {images} pictures wait, of {callers} callers"
        for what, deadline in (("none has a deadline", None), ("all have one", _LATER)):
            batcher, job, demand = (
                queues.full(requests, images, callers, deadline),
                queues.job(0, 1, deadline),
                Demand(),
            )
            admit = functools.partial(_PATIENT.check, job, batcher, queues.pace, 0.0, demand=demand)
            rows.add(f"admission, {what}", shape, "ms", timed(admit, options.times))
            look = functools.partial(outlook, batcher, queues.pace, 0.0)
            rows.add(f"look for who is hopeless, {what}", shape, "ms", timed(look, options.times))
    queues.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
