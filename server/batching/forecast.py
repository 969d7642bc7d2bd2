"""The forecast of when a job would start and finish if it joined now: the queue, played forward.

Every live row costs its lane's measured row time at each evaluation (on a CPU a row is a call), so a seat's work
is evaluations x rows, and everybody who sits advances together. Nobody sits in a lane before it is made. While a lane
is made the others' steps are slower; the forecast leaves that out, as nothing tells by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from server.batching.batcher import Batcher
from server.job import Picture
from server.wish import LaneKey, Wish


@dataclass(frozen=True)
class Making:
    """Says how long lanes that are not ready yet will take to make. One is made at a time."""

    seconds: Mapping[LaneKey, float] = field(default_factory=dict)  # for each lane; one that is not listed counts as 0
    under_way: LaneKey | None = None
    done: float = 0.0  # seconds that the one under way has had


@dataclass(frozen=True)
class Forecast:
    wait: float  # seconds until the first picture of the job has a seat: its own pictures are no queue
    finish: float  # seconds until its last evaluation
    lane_ready: float = 0.0  # seconds until its lane is ready: a part of the wait


def forecast(batcher: Batcher, wish: Wish, row_seconds: dict[LaneKey, float], making: Making | None = None) -> Forecast:
    """Play the seats and the queue forward with `wish` at its place in the queue. Lanes share the device evenly."""
    seats = {key: len(lane.tenants) for key, lane in batcher.lanes.items()}
    # By lane, [evaluations left, rows, is it the joining job's] of the pictures that sit; below of those that wait, in
    # their order.
    live = {key: [_work(tenant) for tenant in lane.tenants if tenant] for key, lane in batcher.lanes.items()}
    queue: dict[LaneKey, list[tuple[int, int, bool]]] = {key: [] for key in batcher.lanes}
    joining = [(wish.lane, (wish.table.evaluations, wish.rows, True))] * wish.images
    waiting = [(p.job.wish.priority, p.job.wish.lane, _work(p)) for p in batcher.waiting]
    before = [(key, work) for priority, key, work in waiting if priority >= wish.priority]
    after = [(key, work) for priority, key, work in waiting if priority < wish.priority]
    for key, work in [*before, *joining, *after]:
        queue[key].append(work)

    ready = _lanes_ready(batcher, (key for key, _ in [*before, *joining, *after]), making or Making())
    now, wait = 0.0, math.inf
    unfinished = wish.images
    while unfinished:
        for key, waiting_here in queue.items():
            while waiting_here and ready[key] <= now and len(live[key]) < seats[key]:
                work = waiting_here.pop(0)
                live[key].append(work)
                if work[2]:
                    wait = min(wait, now)
        coming = [ready[key] for key, waiting_here in queue.items() if waiting_here and ready[key] > now]
        if not any(live.values()):
            now = min(coming)
            continue
        # All lanes with live seats advance in turn until the first seat of any of them is done, or a lane is ready.
        evaluations = min(left for here in live.values() for left, _, _ in here)
        turn = sum(row_seconds[key] * rows for key, here in live.items() for _, rows, _ in here)
        if coming and turn:
            evaluations = min(evaluations, max(1, math.ceil((min(coming) - now) / turn)))
        for key, here in live.items():
            now += evaluations * row_seconds[key] * sum(rows for _, rows, _ in here)
            unfinished -= sum(1 for left, _, joins in here if joins and left == evaluations)
            live[key] = [(left - evaluations, rows, joins) for left, rows, joins in here if left > evaluations]
    return Forecast(wait, now, ready[wish.lane])


def _lanes_ready(batcher: Batcher, order: Iterable[LaneKey], making: Making) -> dict[LaneKey, float]:
    """Forecast the seconds until each lane is ready, 0 for those that are.

    They are made one after the other, in the order of the queue.
    """
    ready, at = dict.fromkeys(batcher.lanes, 0.0), 0.0
    for key in dict.fromkeys([making.under_way, *order] if making.under_way else order):
        if not batcher.lanes[key].ready:
            at += max(0.0, making.seconds.get(key, 0.0) - (making.done if key == making.under_way else 0.0))
            ready[key] = at
    return ready


def _work(picture: Picture) -> tuple[int, int, bool]:
    return picture.evaluations_left, picture.job.wish.rows, False
