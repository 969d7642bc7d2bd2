"""Admission to the queue: a request that cannot be done in time is refused now, not after the work is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from server.batching.batcher import Batcher
from server.batching.forecast import Forecast, alone, forecast, pictures_of
from server.batching.pace import Pace
from server.batching.play import Making
from server.errors import Busy, NotMade, TooLate
from server.job import Job
from server.wish import engine_of


@dataclass(frozen=True)
class Admission:
    """Bounds the queue: how many requests may wait, and for how many seconds at most."""

    queue_jobs: int = 256
    queue_seconds: float = 60.0

    def check(
        self,
        job: Job,
        batcher: Batcher,
        pace: Pace,
        now: float,
        margin: float = 1.0,
        making: Making | None = None,
    ) -> Forecast:
        """Refuse a request that the queue has no place for, that cannot meet its deadline, or that breaks another's.

        Forecasts are multiplied by `margin`. Errors: Busy (with when to ask again), NotMade or TooLate; where the job
        may join its forecast is returned. A lane that is being made is no queue: it counts against the deadline alone.
        """
        if job.deadline is not None and job.deadline <= now:
            raise TooLate("the deadline had passed when the request arrived")
        pace.forget(now)
        expected = forecast(batcher, job, pace, now, margin, making)
        self._fits(job, batcher.waiting_jobs(), expected)
        if (queued := expected.wait - expected.lane_ready) > self.queue_seconds:
            raise Busy(
                f"a seat would be free in about {expected.wait:.0f} s; at most {self.queue_seconds:g} s are waited",
                queued - self.queue_seconds,
            )
        if job.deadline is not None:
            self._meets(job, job.deadline - now, batcher, pace, expected, margin)
        return expected

    def _fits(self, job: Job, waiting: Counter[str], expected: Forecast) -> None:
        """Refuse a job that the queue has no place for.

        When it is full, a caller with less than an equal part of it may still enter, so that nobody's flood locks
        others out; up to twice as many in all.
        """
        count, mine, callers = waiting.total(), waiting[job.caller], len({*waiting, job.caller})
        part = self.queue_jobs // callers
        if count < self.queue_jobs or (mine < part and count < 2 * self.queue_jobs):
            return
        sentence = f"{count} requests are waiting; at most {self.queue_jobs} may"
        if callers > 1:
            sentence = (
                f"{count} requests are waiting, {mine} of them yours; at most {self.queue_jobs} may, and beyond them "
                f"{part} of a caller"
            )
        raise Busy(sentence, max(1.0, expected.wait / 2))

    def _meets(self, job: Job, left: float, batcher: Batcher, pace: Pace, expected: Forecast, margin: float) -> None:
        """Refuse a job that misses its deadline, `left` seconds from now, or makes others miss theirs."""
        needs, finish = alone(pictures_of(job), pace), margin * expected.finish
        engine = (
            f"{engine_of(job.wish.lane)} is being made, for about {expected.lane_ready:.0f} s more; the request's "
            f"deadline is in {left:.2f} s"
        )
        if batcher.empty:  # whatever the forecast says: only a try can show that it is wrong
            if expected.lane_ready > left:
                raise NotMade(engine, finish - left)
            return
        if finish > left:
            if needs > left:
                raise TooLate(f"the request takes about {needs:.2f} s by itself; its deadline is in {left:.2f} s")
            if expected.lane_ready + needs > left:
                raise NotMade(engine, finish - left)
            raise Busy(
                f"the request would finish in about {finish:.2f} s; its deadline is in {left:.2f} s", finish - left
            )
        if expected.breaks:
            count = len(expected.breaks)
            raise Busy(
                f"{count} {'request that was' if count == 1 else 'requests that were'} admitted before would miss "
                f"{'its deadline' if count == 1 else 'their deadlines'}",
                max(expected.breaks),
            )
