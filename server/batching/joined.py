"""Which of a caller's jobs share a step.

A job that joins a step makes it longer for those that are in it already. It saves what a step of its own would have
taken beside that, and whoever comes after it has that time. So as many join as make the sum of all waits the shortest:
each adds what it makes the step longer times the jobs that it holds up, and takes from it what it saves times itself
and those behind it.

Behind it are more than those who are here. What is saved also lets them begin sooner who come before the device rests
again: where nothing could be saved later, there would be 1 / (1 - load) of these for each one here, `load` being the
part of the time in which it works (Kleinrock, Queueing Systems I, 1975, 5.8: the customers of a busy period). But who
steps alone now can share a step later, when more are here. Between none and all of them the root was the best of the
exponents 1/4, 1/2, 3/4 and 1, in exact time and with steps that differ by chance: where eight jobs together take 0.9 of
the time of eight alone, equal jobs at a load of 0.9 then have 0.89 of the better whole batcher's p99, with all 0.92.

Where a step of many rows takes as long as one of few (a GPU that is not full), all join; where each row takes its time
(a CPU), the job with the least left goes first (Schrage 1968), and of equal ones who came first. In one of four of the
caller's steps the job that came first does, however much it has left: no stream of short ones keeps it from ending.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from server.batching.seated import Seated
from server.job import Job

_DOUBT = 0.03  # of a step of its own: less is no saving, as what is known of two steps differs by as much by chance
_OLDEST = 4  # steps, in one of which the job that came first has its turn


def by_turn(seated: Iterable[Seated]) -> list[Seated]:
    """Return pictures in the order in which they stepped last, the longest ago first."""
    return sorted(seated, key=lambda one: one.picture.turn)


def by_work(seated: Sequence[Seated], turns: int) -> list[Seated]:
    """Return pictures by what their jobs have left, the least first, then those of the job that came first.

    `turns`: that the caller has had in their lane; in one of four who came first is first.
    """
    left: Counter[Job] = Counter()
    for one in seated:
        left[one.picture.job] += one.picture.job.wish.rows_left(one.picture.reached)
    weighs = turns % _OLDEST > 0
    return sorted(by_turn(seated), key=lambda one: (weighs * left[one.picture.job], one.picture.job.arrived))


def joined(rows: Sequence[int], step: Callable[[int], float], waiting: int = 0, load: float = 0.0) -> int:
    """Return how many jobs step together, of those with so many rows each, in their order; one at least.

    `step`: seconds of a step of so many rows; `waiting`: who is here behind all of them; `load`: below 1.
    """
    whole, had = rows[0], step(rows[0])
    number, waits, least = 1, 0.0, 0.0
    for together, mine in enumerate(rows[1:], 1):
        whole += mine
        takes = step(whole)
        added, had = takes - had, takes
        behind = (len(rows) - together + waiting) / math.sqrt(1 - load)
        waits += together * added - behind * ((1 - _DOUBT) * step(mine) - added)
        if waits < least:
            number, least = together + 1, waits
    return number
