"""The order in which one party's jobs step in a lane."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from server.batching.joined import by_turn, by_work, is_oldests, joined
from server.batching.seated import Seated
from server.job import Job
from server.pace.behind import Behind

_ALIKE = 2  # times the row evaluations of the first are about as many


class Order:
    """Holds a party's jobs in a lane, those that step first at the front, and the seats and rows of each.

    It stays the same while nobody comes or goes: who steps has less left, so it stays before the others.
    """

    def __init__(self, seated: Sequence[Seated], turns: int, rows: float = math.inf) -> None:
        """Order pictures by what their jobs have left, or by arrival (joined.py), up to so many rows or a few more.

        All have their turns while one has a deadline, which a forecast promised that has all of them step (play.py).
        `turns`: that the party has had in the lane.
        """
        self._together = any(one.picture.job.deadline is not None for one in seated)
        pictures = by_turn(seated) if self._together else by_work(seated, oldest=is_oldests(turns))
        jobs: dict[Job, list[Seated]] = {}
        had = 0
        for one in pictures:
            if had >= rows:
                break
            had += one.picture.rows
            jobs.setdefault(one.picture.job, []).append(one)
        self._jobs = list(jobs.values())
        self._rows = [sum(one.picture.rows for one in job) for job in self._jobs]
        first, *others = (job.wish.rows_left() for job in jobs)
        self._alike = [work <= _ALIKE * first for work in others]

    def __len__(self) -> int:
        """Count the jobs."""
        return len(self._jobs)

    @property
    def together(self) -> bool:
        """Return whether all of them step, whatever it takes."""
        return self._together or len(self._jobs) == 1

    def first(self, jobs: int) -> list[Seated]:
        """Return the pictures of the first jobs."""
        return list(itertools.chain.from_iterable(self._jobs[:jobs]))

    def rest(self, jobs: int) -> list[Seated]:
        """Return the pictures of all but the first jobs."""
        return list(itertools.chain.from_iterable(self._jobs[jobs:]))

    def rows(self, jobs: int) -> int:
        """Count the rows of the first jobs."""
        return sum(self._rows[:jobs])

    def joined(self, step: Callable[[int], float], waiting: int, behind: Behind) -> int:
        """Return how many of the jobs share the coming step: see joined."""
        return len(self) if self.together else joined(self._rows, step, waiting, behind, self._alike)
