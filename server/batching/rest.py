"""A party's seats in a lane, where it is reckoned and not played who has which: who waits takes the next free one."""

from __future__ import annotations

import heapq


class Seats:
    """Holds when each of a party's seats is free, in seconds from now.

    `evaluation`: seconds of one of all that the party has. `least`: for so long a seat is held, as each is emptied by a
    decode and one is done a turn. `others`: seats of all parties, of which each has a picture decoded meanwhile.
    """

    def __init__(self, number: int, free: float, evaluation: float, least: float, others: int) -> None:
        self.free = [free] * number  # a heap
        self._evaluation, self._least, self._others = evaluation, least, others

    def __len__(self) -> int:
        return len(self.free)

    def add(self, free: float) -> None:
        """Add a seat that somebody else needs no more."""
        heapq.heappush(self.free, free)

    def take(self, pictures: int, evaluations: float, decode: float, encode: float) -> tuple[float, float]:
        """Seat so many alike, one after the other; returns when the first sits and when the last is decoded."""
        free, first = self.free, self.free[0]
        taken = max(self._least, evaluations * self._evaluation) + self._others * (decode + encode)
        if len(free) == 1:
            free[0] += pictures * taken
            return first, free[0]
        done = first
        for _ in range(pictures):
            done = free[0] + taken
            heapq.heapreplace(free, done)
        return first, done
