"""The jobs that are here, and where their pictures wait or sit: what the device thread shares with who submits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from server.batching.alike import Alike
from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import endangers, outlook
from server.batching.lane import Lane, Place
from server.batching.making import Making
from server.batching.parting import unfinished
from server.device.bell import Bell
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.margin import Margin
from server.pace.pace import Pace
from server.wish import LaneKey

_LEVEL = 4  # usual requests in full seats, one after another: who has waited so long rises by a level of priority
_CLOCKS = 0.1  # seconds: a client's clock may be so much ahead, and it cancels when its own deadline passes


class Jobs:
    """Holds the jobs that were let in and have not ended. `changed` guards them and the batcher; methods take it.

    Whoever iterates, or reads the batcher, holds it, but for a step that stands. The gauges follow.
    """

    def __init__(
        self,
        batcher: Batcher,
        pace: Pace,
        metrics: Metrics,
        steps: int,
        emptied: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin without jobs. `steps`: of a usual request. `emptied` is called when the last job was forgotten."""
        self.changed = Bell()
        self.batcher = batcher
        self.margin = Margin()
        self.demand = Demand()
        self.alike = Alike()
        self._pace = pace
        self._steps = steps
        self._metrics = metrics
        self._emptied = emptied
        self._jobs: set[Job] = set()
        self._dismissed: list[Job] = []  # they have ended, and their places are yet to be taken from them
        self._look_at = 0.0  # monotonic seconds: nobody becomes hopeless before
        self._first_deadline = math.inf  # of all who are here, when it was looked for the last time

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def wake(self) -> None:
        """Wake who waits for a change. Called by any thread."""
        with self.changed:
            self.changed.notify()

    def add(self, job: Job) -> int:
        """Queue a job's pictures; returns how many wait before them."""
        with self.changed:
            ahead = self.batcher.ahead_of(job.wish.priority, job.caller)
            self.batcher.add(job)
            self._jobs.add(job)
            self._look_at = 0.0
            self._count()
        return ahead

    def forget(self, job: Job) -> None:
        """Forget a job that has ended, and learn from how long it took."""
        with self.changed:
            self._jobs.discard(job)
            now = time.monotonic()
            if not job.cancelled or job.expired(now + _CLOCKS):
                self._learn(job, now, now)
            if not self._jobs:
                self._emptied()

    def dismiss(self, seconds: float, making: Making) -> dict[Job, float]:
        """Take out those who will not be finished in `seconds`; returns them with what they would take.

        Those that wait come first. The device thread takes their places from them, with `dismissed`.
        """
        with self.changed:
            late = unfinished(self.batcher, self._pace, seconds, making)
            for job in late:
                job.expected = None  # it says nothing about forecasts
            self._dismissed.extend(late)
            self.changed.notify()
        return late

    def dismissed(self) -> list[Job]:
        """List those who were dismissed since the last call."""
        with self.changed:
            dismissed, self._dismissed = self._dismissed, []
        return dismissed

    @property
    def quiet_until(self) -> float:
        """Return until when nobody expires or becomes hopeless, monotonic seconds, if nobody rings before."""
        return min(self._look_at, self._first_deadline)

    @property
    def settled(self) -> bool:
        """Return whether somebody sits, nobody waits, and no lane is to be made."""
        with self.changed:
            return not (self.batcher.waiting_count or self.batcher.idle or self.batcher.unmade)

    def gone(self, now: float) -> list[Job]:
        """List the jobs that are cancelled, or expired at `now`, monotonic seconds."""
        with self.changed:
            deadlines = (job.deadline for job in self._jobs if job.deadline is not None)
            self._first_deadline = min(deadlines, default=math.inf)
            return [job for job in self._jobs if job.cancelled or job.expired(now)]

    def hopeless(self, now: float) -> tuple[Job, float] | None:
        """Return a job that cannot meet its deadline any more, and the seconds that it needs; `now` in monotonic ones.

        Ask again until nobody is.
        """
        with self.changed:
            if now < self._look_at:
                return None
            seen = outlook(self.batcher, self._pace, now)
            # Looked at again when half of what the tightest one has to spare is over: steps may slow down.
            self._look_at = now + seen.spare / 2
            if (job := seen.hopeless) is None:
                return None
            self._look_at = 0.0
            self._learn(job, now, now + seen.left)
            return job, seen.left

    def _learn(self, job: Job, now: float, end: float) -> None:
        if job.expected:
            self.margin.ended(now, (end - job.arrived) / job.expected)
            job.expected = None
            self._metrics.forecast_margin.set(self.margin.value(now))

    def leave(self, jobs: Iterable[Job]) -> list[tuple[LaneKey, int]]:
        """Take these jobs out of the queue, their seats and the decoder's queue; returns the seats that they left."""
        with self.changed:
            seats = self.batcher.drop(jobs)
            self._count()
        return seats

    def seat_next(self, now: float, has: Callable[[Picture], bool]) -> Place | None:
        """See Batcher.seat_next; nobody sits down who makes others miss their deadlines. `now`: monotonic seconds."""
        with self.changed:
            self.batcher.level_seconds = _LEVEL * self._steps * self._pace.full_step(self.batcher.seats) or math.inf
            place = self.batcher.seat_next(now, lambda picture: endangers(self.batcher, picture, self._pace, now), has)
            if place is not None:
                if place.paused:
                    self._metrics.pauses_total.inc()
                self._count()
        return place

    def finish(self, lane: LaneKey, seat: int) -> None:
        """See Batcher.finish."""
        with self.changed:
            self.batcher.finish(lane, seat)
            self._count()

    def decoding(self, picture: Picture) -> None:
        """See Batcher.decoding."""
        with self.changed:
            self.batcher.decoding(picture)
            self._count()

    def next_step(self, now: float) -> tuple[LaneKey, Lane, list[int]] | None:
        """Return the lane whose turn it is, and which of its seats step: see Batcher.next_step.

        Seats change by the device thread alone.
        """
        if (turn := self.batcher.same_step()) is None:
            pace = self._pace
            with self.changed:  # a submit may open a lane meanwhile
                turn = self.batcher.next_step(now, pace.row, pace.step, pace.behind)
        return None if turn is None else (turn[0], self.batcher.lanes[turn[0]], turn[1])

    def unmade(self) -> LaneKey | None:
        """See Batcher.unmade."""
        with self.changed:
            return self.batcher.unmade

    def lane_ended(self, key: LaneKey, *, ready: bool) -> list[Job]:
        """Note how the making of a lane went; returns the jobs that waited in vain.

        Whoever comes after this has the lane made, or made again.
        """
        with self.changed:
            lane = self.batcher.lanes[key]
            lane.ready, lane.wanted = ready, False
            return [] if ready else [job for job in self._jobs if job.wish.lane == key]

    def _count(self) -> None:
        self._metrics.queue_depth.set(self.batcher.waiting_count)
        self._metrics.pictures_paused.set(self.batcher.paused_count)
        self._metrics.seats_live.set(len(self.batcher.seated))
        self._metrics.rows_live.set(self.batcher.rows_live)
        self._metrics.decode_backlog.set(len(self.batcher.undecoded))
