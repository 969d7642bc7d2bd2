"""The seats of lanes and parties while the queue is played forward, and how a lane's seats are divided."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping

from server.batching.demand import Claim
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
    """Holds what a party has of all lanes' seats. `weight`: of its share, beside others of its level."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.at = 0.0  # evaluations done
        self.rows: defaultdict[PlayedLane, float] = defaultdict(float)
        # A heap: after which evaluation they end, order, number, lane, job.
        self.live: list[tuple[float, int, int, PlayedLane, Job]] = []
        self.cost = 0.0  # of one evaluation of them, in seconds
        self.drains = True  # seats do: the cost follows the rows

    @property
    def charged(self) -> float:
        """Return what one evaluation is charged with: the seconds of it, by its weight."""
        return self.cost / self.weight

    def change(self, lane: PlayedLane, rows: float) -> None:
        """Take more rows in a lane, or less."""
        self.rows[lane] += rows
        if self.drains:
            self.cost = sum(lane.row * rows for lane, rows in self.rows.items())


class Away:
    """Weighs parties that share the device though nothing of theirs sits.

    Those of `parties`, each with its weight, come again, each with its share; where demand is `known`, with no more
    than its caller asked for. So do callers that asked lately (`shares`) and have nothing here. Requests come in
    bursts, which for many callers even out: counted are the sum of what they ask for, and a few times the root of the
    sum of its squares.
    """

    def __init__(self, parties: Mapping[Party, float], shares: Iterable[Claim] = (), *, known: bool = False) -> None:
        claims = {claim.caller: claim for claim in shares}
        self._asks = {
            party: (weight, (claims[party.caller].share if party.caller in claims else 0.0) if known else 1.0)
            for party, weight in parties.items()
        }
        here = {party.caller for party in parties}
        self._asks |= {
            Party(one.priority, who): (one.weight, one.share) for who, one in claims.items() if who not in here
        }
        self._number: defaultdict[int, int] = defaultdict(int)  # of those that are away, by level
        self._weight: defaultdict[int, float] = defaultdict(float)  # of all of them
        self._share: defaultdict[int, float] = defaultdict(float)  # what they ask for together
        self._squares: defaultdict[int, float] = defaultdict(float)  # of what each asks for
        for party in self._asks:
            self.leaves(party)

    def comes(self, party: Party) -> None:
        """Note that a party begins to sit."""
        if party in self._asks:
            self._note(party, -1)

    def leaves(self, party: Party) -> None:
        """Note that nothing of a party sits any more."""
        if party in self._asks:
            self._note(party, 1)

    def sharing(self, level: int, sitting: float) -> float:
        """Return by what weight the time of a level is divided, of which so much sits."""
        if not self._number.get(level, 0):
            return sitting
        share = self._share[level] + _BURST * math.sqrt(max(0.0, self._squares[level]))
        everybody = sitting + self._weight[level]
        return min(everybody, sitting / (1 - share)) if share < 1 - _NEARLY else everybody

    def _note(self, party: Party, number: int) -> None:
        level, (weight, share) = party.level, self._asks[party]
        self._number[level] += number
        self._weight[level] += number * weight
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
