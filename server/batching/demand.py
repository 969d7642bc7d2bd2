"""How much of the device each caller asked for lately. No thread, no clock: times are arguments.

Who is admitted has a promise that nobody breaks, so a flood of tight deadlines would keep every other caller out: each
newcomer breaks one of them. So the share that a caller who comes again and again has asked for is kept free of promises
while it is away: it is let in when it comes. What is kept is no seat and no step: those who are here have all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

_SECONDS = 5.0  # in which what was asked for is forgotten, by 1 / e
_LEAST = 0.001  # of the device: less is nothing
_CALLERS = 1024  # who asked longest ago is forgotten first


class Claim(NamedTuple):
    """Says what a caller asked for lately, and so has a claim to."""

    caller: str
    priority: int  # of the last request
    weight: float  # of its share
    share: float  # of the device: above 1 is too much


class _Past(NamedTuple):
    seconds: float  # of the device, as they were not forgotten yet
    when: float
    priority: int  # of the last request
    weight: float


class Demand:
    """Remembers the seconds of the device that each caller's requests take, whether they were let in or not."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}  # who asked last is last

    def __len__(self) -> int:
        return len(self._past)

    def note(self, caller: str, priority: int, seconds: float, now: float, weight: float = 1.0) -> None:
        """Note a request that takes so many seconds by itself; `now` in monotonic seconds."""
        before = self._past.pop(caller, None)
        kept = 0.0 if before is None else before.seconds * _left(now - before.when)
        self._past[caller] = _Past(kept + max(0.0, seconds), now, priority, weight)
        if len(self._past) > _CALLERS:
            del self._past[next(iter(self._past))]

    def shares(self, now: float) -> Iterator[Claim]:
        """Yield what each caller asked for lately."""
        for caller, asked in list(self._past.items()):
            share = asked.seconds * _left(now - asked.when) / _SECONDS
            if share < _LEAST:
                del self._past[caller]
            else:
                yield Claim(caller, asked.priority, asked.weight, share)


def _left(seconds: float) -> float:
    return math.exp(-max(0.0, seconds) / _SECONDS)
