"""When a job would start and finish if it joined now: the queue, played forward.

Every live row costs its lane's measured row time at each evaluation (on a CPU a row is a call), so a seat's work
is evaluations x rows, and everybody who sits advances together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.batcher import Batcher
from server.job import LaneKey, Picture, Wish


@dataclass(frozen=True)
class Forecast:
    wait: float  # seconds until the first picture of the job has a seat: its own pictures are no queue
    finish: float  # seconds until its last evaluation


def forecast(batcher: Batcher, wish: Wish, row_seconds: dict[LaneKey, float]) -> Forecast:
    """Play the seats and the queue forward with `wish` at its place in the queue. Lanes share the device evenly."""
    seats = {key: len(lane.tenants) for key, lane in batcher.lanes.items()}
    # [evaluations left, rows, own] of those who sit, and of those who wait in order, by lane
    live = {key: [_work(tenant) for tenant in lane.tenants if tenant] for key, lane in batcher.lanes.items()}
    queue: dict[LaneKey, list[tuple[int, int, bool]]] = {key: [] for key in batcher.lanes}
    own = [(wish.lane, (wish.table.evaluations, wish.rows, True))] * wish.images
    waiting = [(p.job.wish.priority, p.job.wish.lane, _work(p)) for p in batcher.waiting]
    before = [(key, work) for priority, key, work in waiting if priority >= wish.priority]
    after = [(key, work) for priority, key, work in waiting if priority < wish.priority]
    for key, work in [*before, *own, *after]:
        queue[key].append(work)

    now, wait = 0.0, math.inf
    unfinished = wish.images
    while unfinished:
        for key, waiting_here in queue.items():
            while waiting_here and len(live[key]) < seats[key]:
                work = waiting_here.pop(0)
                live[key].append(work)
                if work[2]:
                    wait = min(wait, now)
        # All lanes with live seats advance in turn until the first seat of any of them is done.
        evaluations = min(left for here in live.values() for left, _, _ in here)
        for key, here in live.items():
            now += evaluations * row_seconds[key] * sum(rows for _, rows, _ in here)
            unfinished -= sum(1 for left, _, is_own in here if is_own and left == evaluations)
            live[key] = [(left - evaluations, rows, o) for left, rows, o in here if left > evaluations]
    return Forecast(wait, now)


def _work(picture: Picture) -> tuple[int, int, bool]:
    return picture.evaluations_left, picture.job.wish.rows, False
