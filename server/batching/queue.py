"""The queue: pictures that wait for a seat, paused ones among them, in lines of equals."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from server.job import Job, Picture
from server.wish import LaneKey


class Line(NamedTuple):
    """Names a part of the queue, whose pictures are seated in order of arrival."""

    lane: LaneKey
    caller: str
    priority: int


class Queue:
    """Holds pictures in their lines. A paused picture goes back to the place of its arrival."""

    def __init__(self) -> None:
        self._lines: dict[Line, list[Picture]] = {}  # none is empty
        self._arrivals = itertools.count()
        self._paused: list[Picture] = []

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Picture]:
        """Iterate over the pictures: higher priorities first, equal ones in order of arrival."""
        pictures = itertools.chain.from_iterable(self._lines.values())
        if len(self._lines) == 1:
            return pictures
        if len({line.priority for line in self._lines}) == 1:  # thousands may wait, and a forecast asks for all
            return iter(sorted(pictures, key=operator.attrgetter("arrival")))
        return iter(sorted(pictures, key=lambda picture: (-picture.job.wish.priority, picture.arrival)))

    @property
    def lines(self) -> dict[Line, Picture]:
        """Return the lines, each with its first picture."""
        return {line: pictures[0] for line, pictures in self._lines.items()}

    @property
    def jobs(self) -> set[Job]:
        return {picture.job for pictures in self._lines.values() for picture in pictures}

    @property
    def paused_count(self) -> int:
        return len(self._paused)

    def paused_in(self, lane: LaneKey) -> int:
        """Count the paused pictures of a lane."""
        return sum(1 for picture in self._paused if picture.job.wish.lane == lane)

    def add(self, job: Job, turn: int) -> None:
        """Take in a job's pictures, at a turn of the device."""
        for index in range(job.wish.images):
            self._insert(Picture(job, index, next(self._arrivals), came=turn))

    def pause(self, picture: Picture) -> None:
        """Take a picture in again that has had a seat."""
        picture.pauses += 1
        self._insert(picture)
        self._paused.append(picture)

    def take(self, line: Line) -> Picture:
        """Take the first picture out of a line."""
        picture = self._lines[line].pop(0)
        if not self._lines[line]:
            del self._lines[line]
        if picture in self._paused:
            self._paused.remove(picture)
        return picture

    def drop(self, jobs: set[Job]) -> None:
        """Take the pictures of these jobs out."""
        kept = {line: [p for p in pictures if p.job not in jobs] for line, pictures in self._lines.items()}
        self._lines = {line: pictures for line, pictures in kept.items() if pictures}
        self._paused = [picture for picture in self._paused if picture.job not in jobs]

    def ahead_of(self, priority: int, caller: str) -> int:
        """Count the pictures that come before a new job: of other callers' equals, as many as of its own caller's."""
        before, ahead = 0, 0
        others: Counter[str] = Counter()
        for line, pictures in self._lines.items():
            if line.caller == caller:
                before += len(pictures) * (line.priority >= priority)
            elif line.priority > priority:
                ahead += len(pictures)
            elif line.priority == priority:
                others[line.caller] += len(pictures)
        return before + ahead + sum(min(before, count) for count in others.values())

    def _insert(self, picture: Picture) -> None:
        wish = picture.job.wish
        line = self._lines.setdefault(Line(wish.lane, picture.job.caller, wish.priority), [])
        bisect.insort(line, picture, key=lambda other: other.arrival)
