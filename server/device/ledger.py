"""The ledger of steps: what each took, for the metrics and the pace, entered several at once.

One by one, with caches that the step has left cold, an entry took 48 microseconds more (AMD Zen 4, steps of 6 ms).
"""

from __future__ import annotations

from typing import NamedTuple

from server.metrics import Metrics
from server.pace.pace import Pace
from server.wish import LaneKey

_MOST = 8  # steps that are not entered
_SECONDS = 0.1  # and since the first of them began: no pace is older


class Ran(NamedTuple):
    """Holds a step that was run."""

    lane: LaneKey
    rows: int
    seats: int
    took: float  # seconds
    start: float  # monotonic ones
    end: float  # when its clients were told


class Ledger:
    """Keeps steps until they are entered. Used by the device thread."""

    def __init__(self, metrics: Metrics, pace: Pace) -> None:
        self._metrics, self._pace = metrics, pace
        self._open: list[Ran] = []
        self._last: tuple[LaneKey, int] | None = None  # lane and rows of the last step

    def add(self, ran: Ran) -> None:
        """Take in a step. What another lane or other rows take is entered at once: the next choice depends on it."""
        other, self._last = (ran.lane, ran.rows) != self._last, (ran.lane, ran.rows)
        self._open.append(ran)
        if other or len(self._open) == _MOST or ran.end - self._open[0].start > _SECONDS:
            self.enter()

    def enter(self) -> None:
        """Enter all steps that are not yet."""
        ran, self._open = self._open, []
        if not ran:
            return
        for lane, rows, _, took, start, end in ran:
            self._metrics.step_seconds.observe(took)
            self._pace.stepped(lane, rows, end - start, end)  # what the clients are told is part of it
        self._metrics.steps_total.inc(len(ran))
        self._metrics.seat_steps_total.inc(sum(one.seats for one in ran))
