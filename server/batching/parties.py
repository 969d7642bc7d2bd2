"""The seats of lanes and parties while the queue is played forward, and how a lane's seats are divided."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping

from server.batching.share import Party
from server.job import Job


class PlayedLane:
    """Holds a lane's seats and queue. Pictures of a job that stand together are one entry, with their number."""

    def __init__(self, seats: int, row: float, ready: float) -> None:
        self.free, self.row, self.ready = seats, row, ready
        self.seats: Counter[Party] = Counter()
        # Of each party: number, evaluations, seconds of encoding, job. None is empty.
        self.waiting: dict[Party, deque[tuple[int, float, float, Job]]] = {}

    def wait(self, party: Party, entry: tuple[int, float, float, Job], *, first: bool = False) -> None:
        line = self.waiting.setdefault(party, deque())
        line.appendleft(entry) if first else line.append(entry)

    @property
    def next(self) -> Party:
        """Return the party that sits down next: of the highest level who has the fewest seats, then who came first."""
        if len(self.waiting) == 1:
            return next(iter(self.waiting))
        seats = self.seats
        return min(self.waiting, key=lambda party: (-party.level, seats.get(party, 0)))

    def take(self, party: Party, most: int) -> tuple[int, float, float, Job]:
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
