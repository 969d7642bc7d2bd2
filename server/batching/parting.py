"""Who cannot be finished before the server stops, so that they are told while another server can still do it."""

from __future__ import annotations

import copy
from collections.abc import Container

from server.batching.batcher import Batcher
from server.batching.making import Making
from server.batching.play import Play
from server.job import Job
from server.pace.pace import Pace


def unfinished(batcher: Batcher, pace: Pace, seconds: float, making: Making | None = None) -> dict[Job, float]:
    """Return the jobs that will not be finished in `seconds`, each with the seconds that it would take.

    Nobody else comes. Of those who wait in vain the half with the most work goes first, and of equals the later; then
    the rest is played again, for the others may make it without them. When all who wait do, those who sit are next.
    """
    remaining, gone = _without(batcher, ()), {}
    while True:
        queue = [picture for picture in batcher.waiting if picture.job not in gone]
        ends = Play(remaining, pace, queue, making, everybody=True).played.finished
        late = [job for job, end in ends.items() if end > seconds]
        if not late:
            return gone
        sitting = {picture.job for picture in (*remaining.seated, *remaining.undecoded)}
        waiting = [job for job in late if job not in sitting] or late
        waiting.sort(key=lambda job: (_work(job, pace), ends[job]))
        gone.update((job, ends[job]) for job in waiting[len(waiting) // 2 :])
        remaining = _without(batcher, gone)


def _work(job: Job, pace: Pace) -> float:
    wish = job.wish
    return wish.images * wish.rows_left() * pace.row(wish.lane)


def _without(batcher: Batcher, gone: Container[Job]) -> Batcher:
    """Return a copy of the batcher in which these jobs have no seats and nothing to decode; its queue is not copied."""
    left = copy.copy(batcher)
    left.undecoded = [picture for picture in batcher.undecoded if picture.job not in gone]
    left.lanes = {}
    for key, lane in batcher.lanes.items():
        left.lanes[key] = copy.copy(lane)
        left.lanes[key].tenants = [tenant if tenant and tenant.job not in gone else None for tenant in lane.tenants]
    return left
