"""Requests that are alike have the same forecast as long as nothing has changed.

Under overload most requests are refused, many come within one step, and what refusing takes is lost to the steps where
they share cores: in numbers, 1.5 ms for each refusal at ten times the peak cost 0.11 of the goodput, 0.6 ms 0.05.
"""

from __future__ import annotations

from collections.abc import Hashable

from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import Forecast, forecast
from server.batching.making import Making
from server.job import Job
from server.pace.pace import Pace

_MOST = 256  # of requests that are not alike: with priorities and deadlines a client could think of millions


class Alike:
    """Keeps forecasts until somebody comes, goes, sits down, steps or finishes."""

    def __init__(self) -> None:
        self._changes = -1
        self._kept: dict[Hashable, Forecast] = {}

    def forecast(
        self,
        batcher: Batcher,
        job: Job,
        pace: Pace,
        now: float,
        margin: float,
        making: Making | None,
        demand: Demand | None,
    ) -> Forecast:
        """See forecast.forecast."""
        if self._changes != batcher.changes:
            self._changes = batcher.changes
            self._kept.clear()
        wish = job.wish
        # A lane's making takes its time though nothing changes. One that nobody waits for, and cannot be made, is none.
        if batcher.unmade is not None or not batcher.lanes[wish.lane].ready:
            return forecast(batcher, job, pace, now, margin, making, demand)
        # What counts of it, and the margin. Who else asked meanwhile changes shares by next to nothing.
        numbers = (wish.priority, wish.images, wish.table.evaluations, wish.rows_left(), job.unencoded)
        kind = (job.caller, job.deadline is None, margin, wish.lane, wish.size, wish.format, wish.keep is None, numbers)
        if (kept := self._kept.get(kind)) is None:
            if len(self._kept) >= _MOST:
                self._kept.clear()
            kept = self._kept[kind] = forecast(batcher, job, pace, now, margin, making, demand)
        return kept
