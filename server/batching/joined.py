"""Which of a caller's jobs share a step.

A job that joins a step makes it longer for those that are in it already. It saves what a step of its own would have
taken beside that, and whoever comes after it has that time. So as many join as make the sum of all waits the shortest:
each adds what it makes the step longer times the jobs that it holds up, and takes from it what it saves times itself
and those behind it.

Behind it are more than those who are here: what is saved also lets them begin sooner who come before the device rests
again (server/pace/load.py).

Where a step of many rows takes as long as one of few (a GPU that is not full), all join; where each row takes its time
(a CPU), the job with the least left goes first (Schrage 1968), and of equal ones who came first. In one of four of the
caller's steps the job that came first does, however much it has left: no stream of short ones keeps it from ending.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from server.batching.seated import Seated
from server.job import Job
from server.pace.behind import THOSE_HERE, Behind

_DOUBT = 0.015  # of a step of its own: less is no saving, as what is known of two steps differs by as much by chance
_OLDEST = 4  # steps, in one of which the job that came first has its turn


def by_turn(seated: Iterable[Seated]) -> list[Seated]:
    """Return pictures in the order in which they stepped last, the longest ago first."""
    return sorted(seated, key=lambda one: one.picture.turn)


def is_oldests(turns: int) -> bool:
    """Return whether the job that came first has its turn, of a caller who has had so many in the lane."""
    return turns % _OLDEST == 0


def by_work(seated: Sequence[Seated], *, oldest: bool) -> list[Seated]:
    """Return pictures by what their jobs have left, the least first, then those of the job that came first.

    `oldest`: is it the turn of that job, however much it has left?
    """
    left: Counter[Job] = Counter()
    for one in seated:
        left[one.picture.job] += one.picture.job.wish.rows_left(one.picture.reached)
    return sorted(by_turn(seated), key=lambda one: (0 if oldest else left[one.picture.job], one.picture.job.arrived))


def joined(
    rows: Sequence[int],
    step: Callable[[int], float],
    waiting: int = 0,
    behind: Behind = THOSE_HERE,
    alike: Sequence[bool] = (),
) -> int:
    """Return how many jobs step together, of those with so many rows each, in their order; one at least.

    `step`: seconds of a step of so many rows; `waiting`: who is here behind all of them; `alike`: of each but the
    first, whether it takes about as long as the first; all do where nothing is said.
    """
    whole, had = rows[0], step(rows[0])
    own = {whole: had}  # what a step of its own takes each
    number, waits, least = 1, 0.0, 0.0
    for together, (mine, same) in enumerate(zip(rows[1:], alike or itertools.repeat(True), strict=False), 1):
        whole += mine
        takes = step(whole)
        added, had = takes - had, takes
        if mine not in own:
            own[mine] = step(mine)
        saved = (1 - _DOUBT) * own[mine] - added
        later = behind.each * (len(rows) - together) + behind.waiting * waiting + behind.alike * same
        waits += together * added - later * saved
        if waits < least:
            number, least = together + 1, waits
    return number
