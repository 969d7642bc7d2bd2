"""Admission to the queue: a request that cannot be done in time is refused now, not after the work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from server.batching.alike import Alike
from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import Forecast, alone, device_seconds, pictures_of
from server.batching.making import Making
from server.errors import Busy, NotMade, TooLate
from server.job import Job
from server.pace.pace import Pace
from server.wish import engine_of


class Reading(NamedTuple):
    """Holds the seconds that the pictures of a request take before it joins."""

    wait: float = 0.0  # for those of others
    takes: float = 0.0  # themselves


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
        demand: Demand | None = None,
        reading: Reading | None = None,
        alike: Alike | None = None,
        before: float = 0.0,
    ) -> Forecast:
        """Refuse a request that the queue has no place for, that cannot meet its deadline, or that breaks another's.

        Forecasts are multiplied by `margin`. `demand`: what callers asked for lately; a job with a deadline leaves them
        their shares. `reading`: of its pictures, before it joins; others will have joined by then, so it joins behind
        as much as is here now. `before`: seconds that the device still has for another model's requests; this
        batcher's come after them. Errors: Busy (with when to ask again), NotMade or TooLate; where the job may join its
        forecast is returned, that of a request before it where `alike` has one. A lane that is being made is no queue:
        it counts against the deadline alone.
        """
        if job.deadline is not None and job.deadline <= now:
            raise TooLate("the deadline had passed when the request arrived")
        pace.forget(now)
        self._fits(job, batcher, pace)
        expected = (alike or Alike()).forecast(batcher, job, pace, now, margin, making, demand)
        if (queued := before + expected.wait - expected.lane_ready) > self.queue_seconds:
            raise Busy(
                f"a seat would be free in about {before + expected.wait:.0f} s; at most {self.queue_seconds:g} s are "
                "waited",
                queued - self.queue_seconds,
            )
        if job.deadline is not None:
            self._meets(job, job.deadline - now, batcher, pace, expected, margin, reading or Reading(), before)
        return expected

    def _fits(self, job: Job, batcher: Batcher, pace: Pace) -> None:
        """Refuse a job that the queue has no place for.

        When it is full, a caller with less than an equal part of it may still enter, so that nobody's flood locks
        others out; up to twice as many in all.
        """
        waiting = batcher.waiting_jobs()
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
        # Half of what is here: a forecast would say it better, and costs milliseconds of the event loop.
        seconds = sum(device_seconds([picture], pace) for picture in batcher.seated)
        seconds += sum(device_seconds(pictures_of(other), pace) for other in batcher.jobs_waiting)
        raise Busy(sentence, max(1.0, seconds / 2))

    def _meets(
        self,
        job: Job,
        left: float,
        batcher: Batcher,
        pace: Pace,
        expected: Forecast,
        margin: float,
        reading: Reading,
        before: float,
    ) -> None:
        """Refuse a job that misses its deadline, `left` seconds from now, or makes others miss theirs."""
        needs = reading.takes + alone(pictures_of(job), pace)
        finish = reading.wait + reading.takes + before + margin * expected.finish
        engine = (
            f"{engine_of(job.wish.lane)} is being made, for about {expected.lane_ready:.0f} s more; the request's "
            f"deadline is in {left:.2f} s"
        )
        # Whatever the forecast says: only a try can show that it is wrong.
        if batcher.empty and not reading.takes and not before:
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
