"""The seats of lanes and parties while the queue is played forward, and how a lane's seats are divided."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping

from server.batching.seated import Party
from server.job import Job

_NEARLY = 1e-9
_BURST = 3.0  # of a caller that asks for a quarter, 0.9 of the requests find their share; with none a half (numbers)
Waiting = tuple[int, float, float, Job]  # pictures that are alike: number, evaluations, seconds of encoding, job


class PlayedLane:
    """Holds a lane's seats and queue. Pictures of a job that stand together are one entry, with their number."""

    def __init__(self, seats: int, row: float, ready: float) -> None:
        self.free, self.row, self.ready = seats, row, ready
        self.seats: Counter[Party] = Counter()
        self.waiting: dict[Party, deque[Waiting]] = {}  # none is empty

    def wait(self, party: Party, entry: Waiting, *, first: bool = False) -> None:
        line = self.waiting.setdefault(party, deque())
        line.appendleft(entry) if first else line.append(entry)

    @property
    def next(self) -> Party:
        """Return the party that sits down next: of the highest level who has the fewest seats, then who came first."""
        if len(self.waiting) == 1:
            return next(iter(self.waiting))
        seats, first, level, fewest = self.seats, None, 0, 0
        for party in self.waiting:  # a loop, for it is asked often and there may be fifty of them
            if first is None or party.level > level or (party.level == level and seats.get(party, 0) < fewest):
                first, level, fewest = party, party.level, seats.get(party, 0)
        assert first is not None
        return first

    def take(self, party: Party, most: int) -> Waiting:
        """Take a party's first entry, or so many of its pictures."""
        line = self.waiting[party]
        number, evaluations, encode, job = line.popleft()
        if number > most:
            line.appendleft((number - most, evaluations, encode, job))
        elif not line:
            del self.waiting[party]
        return min(number, most), evaluations, encode, job


class PlayedParty:
    """Holds what a party has of all lanes' seats."""

    def __init__(self) -> None:
        self.at = 0.0  # evaluations done
        self.rows: defaultdict[PlayedLane, float] = defaultdict(float)
        # A heap: after which evaluation they end, order, number, lane, job.
        self.live: list[tuple[float, int, int, PlayedLane, Job]] = []
        self.cost = 0.0  # of one evaluation of them, in seconds
        self.drains = True  # seats do: the cost follows the rows

    def change(self, lane: PlayedLane, rows: float) -> None:
        """Take more rows in a lane, or less."""
        self.rows[lane] += rows
        if self.drains:
            self.cost = sum(lane.row * rows for lane, rows in self.rows.items())


class Away:
    """Counts parties that share the device though nothing of theirs sits.

    Those of `parties` come again, each with its share; where demand is `known`, with no more than its caller asked for.
    So do callers that asked lately (`shares`: whose, priority, share of the device) and have nothing here. Requests
    come in bursts, which for many callers even out: counted are the sum of what they ask for, and a few times the root
    of the sum of its squares.
    """

    def __init__(
        self,
        parties: Iterable[Party] = (),
        shares: Iterable[tuple[str, int, float]] = (),
        *,
        known: bool = False,
    ) -> None:
        asks = {caller: (priority, share) for caller, priority, share in shares}
        self._asks = {party: asks.get(party.caller, (0, 0.0))[1] if known else 1.0 for party in parties}
        here = {party.caller for party in self._asks}
        self._asks |= {Party(level, who): share for who, (level, share) in asks.items() if who not in here}
        self._number: defaultdict[int, int] = defaultdict(int)  # of those that are away, by level
        self._share: defaultdict[int, float] = defaultdict(float)  # what they ask for together
        self._squares: defaultdict[int, float] = defaultdict(float)  # of what each asks for
        for party in self._asks:
            self.leaves(party)

    def comes(self, party: Party) -> None:
        """Note that a party begins to sit."""
        if (share := self._asks.get(party)) is not None:
            self._note(party.level, -1, share)

    def leaves(self, party: Party) -> None:
        """Note that nothing of a party sits any more."""
        if (share := self._asks.get(party)) is not None:
            self._note(party.level, 1, share)

    def sharing(self, level: int, sitting: int) -> float:
        """Return by how many parties of a level the time is divided, so many of which sit."""
        if not (away := self._number.get(level, 0)):
            return sitting
        share = self._share[level] + _BURST * math.sqrt(max(0.0, self._squares[level]))
        return min(sitting + away, sitting / (1 - share)) if share < 1 - _NEARLY else sitting + away

    def _note(self, level: int, number: int, share: float) -> None:
        self._number[level] += number
        self._share[level] += number * share
        self._squares[level] += number * share**2


def divided(pictures: Mapping[Party, int], seats: int) -> dict[Party, float]:
    """Divide a lane's seats evenly among the parties of a level; returns which part of its pictures each can seat.

    Where there are more than seats they take turns, each with one seat. Levels do not share: the highest steps alone,
    and has all the seats that it can use.
    """
    parts: dict[Party, float] = {}
    levels: dict[int, list[Party]] = defaultdict(list)
    for party in sorted(pictures, key=pictures.__getitem__):
        levels[party.level].append(party)
    for parties in levels.values():
        left = float(seats)
        for place, party in enumerate(parties):
            if pictures[party]:
                part = min(1.0, max(1.0, left / (len(parties) - place)) / pictures[party])
                left -= part * pictures[party]
                parts[party] = part
    return parts
