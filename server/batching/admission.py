"""Admission to the queue: a request that cannot be done in time is refused now, not after the work is done."""

from __future__ import annotations

from dataclasses import dataclass

from server.batching.batcher import Batcher
from server.batching.forecast import Forecast, alone, forecast
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
        waiting = batcher.waiting_jobs
        if waiting >= self.queue_jobs:
            raise Busy(f"{waiting} requests are waiting; at most {self.queue_jobs} may", max(1.0, expected.wait / 2))
        if (queued := expected.wait - expected.lane_ready) > self.queue_seconds:
            raise Busy(
                f"a seat would be free in about {expected.wait:.0f} s; at most {self.queue_seconds:g} s are waited",
                queued - self.queue_seconds,
            )
        if job.deadline is not None:
            self._meets(job, job.deadline - now, batcher, pace, expected, margin)
        return expected

    def _meets(self, job: Job, left: float, batcher: Batcher, pace: Pace, expected: Forecast, margin: float) -> None:
        """Refuse a job that misses its deadline, `left` seconds from now, or makes others miss theirs."""
        needs, finish = alone(job, pace), margin * expected.finish
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
