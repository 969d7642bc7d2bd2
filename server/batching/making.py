"""The lanes that are not ready yet: how long it takes until they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from server.batching.batcher import Batcher
from server.wish import LaneKey


@dataclass(frozen=True)
class Making:
    """Says how long lanes that are not ready yet will take to make. One is made at a time."""

    seconds: Mapping[LaneKey, float] = field(default_factory=dict)  # for each lane; one that is not listed counts as 0
    under_way: LaneKey | None = None
    done: float = 0.0  # seconds that the one under way has had


def lanes_ready(batcher: Batcher, order: Iterable[LaneKey], making: Making) -> dict[LaneKey, float]:
    """Forecast the seconds until each lane is ready, 0 for those that are.

    They are made one after the other, in the order of the queue.
    """
    ready, at = dict.fromkeys(batcher.lanes, 0.0), 0.0
    if all(lane.ready for lane in batcher.lanes.values()):
        return ready
    for key in dict.fromkeys([making.under_way, *order] if making.under_way else order):
        if not batcher.lanes[key].ready:
            at += max(0.0, making.seconds.get(key, 0.0) - (making.done if key == making.under_way else 0.0))
            ready[key] = at
    return ready
