"""The pace of this device: how long what it does takes. No thread, no clock: times come in as numbers.

Each cost is the median of its last samples. One sample, however long, changes nothing: a process that was stopped, a
machine that swapped, a clock that jumped. Another load of the machine is noticed after half of them. Where long samples
keep coming, steps cost their mean (bursts.py). How steps of many rows compare with those of few, which decides who
shares one, is told apart from the machine's speed (steps.py).
"""

from __future__ import annotations

import math
from collections import defaultdict

from server.pace.behind import Behind
from server.pace.bursts import Bursts
from server.pace.load import Load
from server.pace.median import Median
from server.pace.steps import Steps
from server.wish import LaneKey, Size

_LONGEST = 10  # medians: what a step took beyond was a stop, in which the device did not work
_LOOK = 0.1  # seconds between looks at how steps are spread: each took 20 of the 120 microseconds beside a step (Zen 5)


class Pace:
    """Knows the seconds of everything that a picture needs; 0 for what has not been done yet.

    On a CPU a row is a call, so an evaluation takes its rows; what else is done between steps holds them up.
    """

    def __init__(self, row_seconds: dict[LaneKey, float]) -> None:
        """Begin with the seconds a row of the lanes that were made at start, one chunk of each size among them."""
        self._rows = {lane: Median([seconds]) for lane, seconds in row_seconds.items()}
        self._bursts = Bursts()
        self._burst = 1.0  # the mean of a step over its median
        self._looked = -math.inf  # when that was told
        self._steps = {lane: Steps(seconds) for lane, seconds in row_seconds.items()}
        self._encode = Median()  # of a chunk of a prompt
        self._decode: dict[Size, Median] = defaultdict(Median)
        self._file: dict[tuple[Size, str], Median] = defaultdict(Median)  # by format
        self._judge = Median()  # of a picture, whatever its size: the judge sees all alike
        self._load = Load()
        self.unjudged = 0  # pictures that wait for the judge, or are before it

    def open(self, lane: LaneKey) -> None:
        """Add another lane of a size: until it steps it has the pace of the same size's first lane.

        That is the one of the shortest prompts and the least rank of LoRAs.
        """
        size = lane.width, lane.height
        first = min(known for known in self._rows if (known.width, known.height) == size)
        self.measured(lane, self._rows[first].value)

    def measured(self, lane: LaneKey, seconds: float) -> None:
        """Take so many seconds a row for a lane's pace, in place of what was measured before."""
        self._rows[lane], self._steps[lane] = Median([seconds]), Steps(seconds)

    def stepped(self, lane: LaneKey, rows: int, seconds: float, now: float) -> None:
        """Note a step that ended at `now`, monotonic seconds."""
        self._rows[lane].add(seconds / rows)
        self._load.worked(min(seconds, _LONGEST * rows * self._rows[lane].value))
        self._steps[lane].stepped(rows, seconds)
        if (middle := self._rows[lane].middle) is not None:
            self._bursts.stepped(now, middle, self._rows[lane].value)
        if now >= self._looked + _LOOK:
            self.forget(now)

    def forget(self, now: float) -> None:
        """Forget how steps were spread that ended more than ten seconds before `now`."""
        self._burst, self._looked = self._bursts.value(now), now

    def encoded(self, chunks: int, seconds: float) -> None:
        self._encode.add(seconds / chunks)
        self._load.worked(seconds)

    def decoded(self, size: Size, seconds: float) -> None:
        self._decode[size].add(seconds)
        self._load.worked(seconds)
        self._load.finished()

    def written(self, size: Size, format: str, seconds: float) -> None:
        """Note how long after the device was free again a picture's file was there."""
        self._file[size, format].add(seconds)

    def rested(self, seconds: float) -> None:
        """Note how long there was nothing to do."""
        self._load.rested(seconds)

    def judged(self, seconds: float) -> None:
        self._judge.add(seconds)

    @property
    def load(self) -> float:
        """Return the part of the time in which the device worked lately, below 1."""
        return self._load.value

    @property
    def behind(self) -> Behind:
        """See Load.behind."""
        return self._load.behind

    def row(self, lane: LaneKey) -> float:
        """Return the seconds a row of one evaluation."""
        return self._burst * self._rows[lane].value

    def step(self, lane: LaneKey, rows: int) -> float:
        """Return the seconds of a step of so many rows (steps.py).

        On a GPU a step of few rows takes nearly as long as one of many.
        """
        known = self._steps[lane].value(rows)
        return rows * self.row(lane) if known is None else known

    @property
    def chunk(self) -> float:
        """Return the seconds that encoding a chunk of a prompt takes."""
        return self._encode.value

    def decode(self, size: Size) -> float:
        """Return the seconds that decoding a picture holds the device up. Where it is done beside steps: a moment."""
        return self._decode[size].value if size in self._decode else 0.0

    def file(self, size: Size, format: str) -> float:
        """Return the seconds from there to the picture's file: beside the device, a wait for a thread included."""
        return self._file[size, format].value if (size, format) in self._file else 0.0

    @property
    def judge(self) -> float:
        """Return the seconds that the judge takes for a picture, beside the device."""
        return self._judge.value

    @property
    def judge_wait(self) -> float:
        """Return the seconds until the judge has seen all pictures that it has."""
        return self.unjudged * self._judge.value

    def full_step(self, seats: int) -> float:
        """Forecast a step with so many guided seats, in the slowest lane; seconds."""
        return 2 * seats * max(map(self.row, self._rows))
