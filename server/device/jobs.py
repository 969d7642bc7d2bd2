"""The jobs that are here, and where their pictures wait or sit: what the device thread shares with who submits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from server.batching.batcher import Batcher, Lane
from server.job import Job, Picture
from server.metrics import Metrics
from server.wish import LaneKey


class Jobs:
    """Holds the jobs that were let in and have not ended. `changed` guards them and the batcher; methods take it.

    Whoever iterates, or reads the batcher, holds it. The gauges follow.
    """

    def __init__(self, batcher: Batcher, metrics: Metrics) -> None:
        self.changed = threading.Condition()
        self.batcher = batcher
        self._metrics = metrics
        self._jobs: set[Job] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job) -> int:
        """Queue a job's pictures; returns how many wait before them."""
        with self.changed:
            ahead = self.batcher.ahead_of(job.wish.priority)
            self.batcher.add(job)
            self._jobs.add(job)
            self._count()
        return ahead

    def forget(self, job: Job) -> None:
        with self.changed:
            self._jobs.discard(job)

    def gone(self, now: float) -> list[Job]:
        """List the jobs that are cancelled, or expired at `now`, monotonic seconds."""
        with self.changed:
            return [job for job in self._jobs if job.cancelled or job.expired(now)]

    def leave(self, jobs: Iterable[Job]) -> list[tuple[LaneKey, int]]:
        """Take these jobs out of the queue and out of their seats; returns the seats that they left."""
        with self.changed:
            seats = self.batcher.drop(jobs)
            self._count()
        return seats

    def seat_next(self) -> tuple[LaneKey, int, Picture] | None:
        """See Batcher.seat_next."""
        with self.changed:
            place = self.batcher.seat_next()
            self._count()
        return place

    def free(self, lane: LaneKey, seat: int) -> None:
        """See Batcher.free."""
        with self.changed:
            self.batcher.free(lane, seat)
            self._count()

    def next_lane(self) -> tuple[LaneKey, Lane] | None:
        """Return the lane whose turn it is to step. Its seats change by the device thread alone."""
        with self.changed:  # a submit may open a lane meanwhile
            key = self.batcher.next_lane()
            return None if key is None else (key, self.batcher.lanes[key])

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
        self._metrics.rows_live.set(self.batcher.rows_live)
