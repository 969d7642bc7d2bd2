"""The ledger of steps: what is to be told of each to clients, the metrics and the pace, entered several at once.

One by one, with caches that the step has left cold, an entry took 48 microseconds more (AMD Zen 4, steps of 6 ms), and
what a client is told 30. A client is not woken more than ten times a second anyway (server/mailbox.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.events import Step
from server.job import Picture
from server.metrics import Metrics
from server.pace.pace import Pace
from server.wish import LaneKey

_MOST = 8  # steps that are not entered
_SECONDS = 0.05  # and since the first of them began, looked at after each step: so much later is it told at most


class Ran(NamedTuple):
    """Holds a step that was run."""

    lane: LaneKey
    rows: int
    pictures: Sequence[tuple[Picture, int]]  # that had it, and how many evaluations each had done then
    took: float  # seconds
    start: float  # monotonic ones
    end: float  # when what had to be noted at once was noted


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
        """Enter all steps that are not yet. A client is told of the last of several."""
        ran, self._open = self._open, []
        if not ran:
            return
        told: dict[Picture, Step] = {}
        for lane, rows, pictures, took, start, end in ran:
            for picture, reached in pictures:
                table = picture.job.wish.table
                done = table.steps_after(reached)
                if done > table.steps_after(reached - 1):  # a step may take two evaluations
                    told[picture] = Step(picture.index, done, table.steps)
            self._metrics.step_seconds.observe(took)
            self._pace.stepped(lane, rows, end - start, end)
        for picture, step in told.items():
            picture.job.mailbox.post(step)
        self._metrics.steps_total.inc(len(ran))
        self._metrics.seat_steps_total.inc(sum(len(one.pictures) for one in ran))
