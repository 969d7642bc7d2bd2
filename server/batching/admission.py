"""Admission to the queue: a request that cannot be done in time is refused now, not after the work is done."""

from __future__ import annotations

from dataclasses import dataclass

from server.batching.batcher import Batcher
from server.batching.forecast import Making, forecast
from server.errors import Busy, NotMade, TooLate
from server.wish import LaneKey, Wish, engine_of


@dataclass(frozen=True)
class Admission:
    """Bounds the queue: how many requests may wait, and for how many seconds at most."""

    queue_jobs: int = 256
    queue_seconds: float = 60.0

    def check(
        self,
        wish: Wish,
        batcher: Batcher,
        row_seconds: dict[LaneKey, float],
        now: float,
        deadline: float | None,
        making: Making | None = None,
    ) -> None:
        """Refuse a request that the queue has no place for, or that cannot meet its deadline.

        Errors: Busy (with when to ask again), NotMade or TooLate; nothing is raised when the job may join.
        A lane that is being made is no queue: it counts against the deadline alone.
        """
        if deadline is not None and deadline <= now:
            raise TooLate("the deadline had passed when the request arrived")
        waiting = len({picture.job for picture in batcher.waiting})
        if waiting >= self.queue_jobs:
            soon = forecast(batcher, wish, row_seconds, making).wait / 2
            raise Busy(f"{waiting} requests are waiting; at most {self.queue_jobs} may", max(1.0, soon))
        expected = forecast(batcher, wish, row_seconds, making)
        if (queued := expected.wait - expected.lane_ready) > self.queue_seconds:
            raise Busy(
                f"a seat would be free in about {expected.wait:.0f} s; at most {self.queue_seconds:g} s are waited",
                queued - self.queue_seconds,
            )
        if deadline is not None and now + expected.finish > deadline:
            alone = wish.table.evaluations * wish.rows * wish.images * row_seconds[wish.lane]
            left = deadline - now
            if alone > left:
                raise TooLate(f"the request takes about {alone:.2f} s by itself; its deadline is in {left:.2f} s")
            if expected.lane_ready + alone > left:
                raise NotMade(
                    f"{engine_of(wish.lane)} is being made, for about {expected.lane_ready:.0f} s more; the request's "
                    f"deadline is in {left:.2f} s",
                    expected.finish - left,
                )
            raise Busy(
                f"the request would finish in about {expected.finish:.2f} s; its deadline is in {left:.2f} s",
                expected.finish - left,
            )
