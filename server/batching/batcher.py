"""The batcher knows who waits and who sits in which seat. It has no thread, clock or device: times are arguments.

Callers share a lane's seats evenly while they have pictures for them, and a higher priority comes first. Who has more
than that when another waits has a picture paused: it goes back to its place in the queue, and its state is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from server.batching.lane import Lane, Place
from server.batching.queue import Line, Queue
from server.batching.seated import Party, Seated
from server.batching.share import Share
from server.caller import LOCAL
from server.job import Job, Picture
from server.pace.behind import THOSE_HERE, Behind
from server.wish import LaneKey

_FEW = 4  # evaluations that a resumed picture has before it is paused again for another caller's sake
PAUSED = 4  # pictures of a lane for each of its seats: their states are kept on the host
_SLICE = 8  # those that it has, and that the other waits, where there are more callers than seats


class Batcher:
    """Seats pictures, and chooses who steps. No lane's queue holds up another's.

    `lanes` are ready (made already); those that `open` adds are not.
    """

    def __init__(self, lanes: Iterable[LaneKey], seats: int) -> None:
        self.seats = seats  # of a lane
        self.lanes = {key: Lane(seats, ready=True) for key in lanes}
        self.level_seconds = math.inf  # of waiting, for which a picture rises by one level of priority
        self.undecoded: list[Picture] = []  # finished, in the order in which they will be decoded
        self._queue = Queue()
        self._share = Share()
        self._turn = 0  # steps so far
        self.moves = 0  # of pictures: who came, sat down, left, was finished or is being decoded

    @property
    def changes(self) -> int:
        """Count the moves and the steps so far."""
        return self.moves + self._turn

    def open(self, key: LaneKey) -> bool:
        """Add a lane with empty seats; False when there is one already."""
        new = key not in self.lanes
        if new:
            self.lanes[key] = Lane(self.seats, ready=False)
        return new

    def add(self, job: Job) -> None:
        self.moves += 1
        self._queue.add(job, self._turn)

    @property
    def waiting(self) -> list[Picture]:
        """List the pictures that wait: higher priorities first, equal ones in order of arrival."""
        return list(self._queue)

    @property
    def waiting_count(self) -> int:
        return len(self._queue)

    @property
    def paused_count(self) -> int:
        """Count those of them that have had a seat."""
        return self._queue.paused_count

    @property
    def jobs_waiting(self) -> set[Job]:
        """List the jobs of which pictures wait."""
        return self._queue.jobs

    def waiting_jobs(self) -> Counter[str]:
        """Count the jobs that wait, of each caller."""
        return Counter(job.caller for job in self._queue.jobs)

    @property
    def seated(self) -> list[Picture]:
        return [tenant for lane in self.lanes.values() for tenant in lane.tenants if tenant]

    @property
    def empty(self) -> bool:
        """Return whether nobody sits, nobody waits, and nothing is to be decoded."""
        return not (self._queue or self.undecoded or any(lane.live for lane in self.lanes.values()))

    @property
    def crowded(self) -> bool:
        """Return whether as many pictures wait for the decoder as a lane has seats: nobody sits down before them."""
        return len(self.undecoded) >= self.seats

    @property
    def idle(self) -> bool:
        """Return whether nobody sits, and nobody who waits could: their lanes are yet to be made, or it is crowded."""
        return not any(lane.live for lane in self.lanes.values()) and (
            self.crowded or not any(self.lanes[line.lane].ready for line in self._queue.lines)
        )

    @property
    def unmade(self) -> LaneKey | None:
        """Return the lane to make next: that of the first in the queue who waits for one, then those that were wanted.

        None where every lane that anybody waits for, or wanted, is ready.
        """
        unready = {line: first for line, first in self._queue.lines.items() if not self.lanes[line.lane].ready}
        if unready:
            return min(unready, key=lambda line: (-line.priority, unready[line].arrival)).lane
        return next((key for key, lane in self.lanes.items() if lane.wanted and not lane.ready), None)

    @property
    def rows_live(self) -> int:
        """Count the UNet rows of all who sit."""
        return sum(tenant.rows for tenant in self.seated)

    def ahead_of(self, priority: int, caller: str = LOCAL) -> int:
        """See Queue.ahead_of."""
        return self._queue.ahead_of(priority, caller)

    def levels(self, now: float) -> Callable[[Picture], int]:
        """Return what tells a picture's level: its priority, and one more for each `level_seconds` without a step.

        Nobody rises above the highest priority that is here, so that waiting is no advantage over equals. So nothing
        starves: after level_seconds for each priority that others have more, a picture has its caller's equal share.
        `now`: monotonic seconds.
        """
        priorities = [line.priority for line in self._queue.lines]
        priorities += [tenant.job.wish.priority for tenant in self.seated]
        top, seconds = max(priorities, default=0), self.level_seconds

        def level(picture: Picture) -> int:
            priority = picture.job.wish.priority
            if priority >= top:
                return priority
            return min(top, priority + int(max(0.0, now - picture.job.arrived - picture.stepped) / seconds))

        return level

    def drop(self, gone: Iterable[Job]) -> list[tuple[LaneKey, int]]:
        """Take these jobs out of the queue, their seats and the decoder's queue; returns the seats that they left."""
        jobs = set(gone)
        self.moves += 1
        self.undecoded = [picture for picture in self.undecoded if picture.job not in jobs]
        self._queue.drop(jobs)
        left = []
        for key, lane in self.lanes.items():
            for seat in lane.live:
                tenant = lane.tenants[seat]
                if tenant and tenant.job in jobs:
                    lane.tenants[seat] = None
                    left.append((key, seat))
        return left

    def seat_next(
        self,
        now: float = 0.0,
        endangers: Callable[[Picture], bool] = lambda picture: False,
        has: Callable[[Picture], bool] = lambda picture: True,
    ) -> Place | None:
        """Give a seat to the first in the queue whose lane is ready and has one for it: free, or of who is paused.

        First is who has the highest level, then whose caller has the fewest seats there, then who waits longest; who
        has not all that it sits down with is passed over. None where nobody can be seated, or where that one
        `endangers` the deadline of somebody who sits: it waits then, and so do those behind it, lest it starve. `now`:
        monotonic seconds.
        """
        if not self._queue or self.crowded:
            return None
        level = self.levels(now)
        for line, picture in self._in_order(level):
            lane = self.lanes[line.lane]
            seat = lane.tenants.index(None) if None in lane.tenants else self._surplus(line.lane, picture, level)
            if seat is None or not has(picture):
                continue
            if endangers(picture):
                return None
            self.moves += 1
            self._queue.take(line)
            if paused := lane.tenants[seat]:
                self._queue.pause(paused)
            lane.tenants[seat], picture.ran = picture, 0
            return Place(line.lane, seat, picture, paused)
        return None

    def _in_order(self, level: Callable[[Picture], int]) -> list[tuple[Line, Picture]]:
        """Return the lines of lanes that are ready, each with its first picture, in the order in which these sit."""
        lines = [(line, first) for line, first in self._queue.lines.items() if self.lanes[line.lane].ready]
        if len(lines) < 2:
            return lines
        seats = {key: self._seats_of(key) for key in {line.lane for line, _ in lines}}

        def place(entry: tuple[Line, Picture]) -> tuple[int, int, int, int]:
            line, first = entry
            # Who is new waits from now on: else a stream of new ones keeps one that was paused from its seat for ever.
            since = max(first.came, first.turn)
            return -level(first), seats[line.lane][line.caller], since, first.arrival

        return sorted(lines, key=place)

    def _seats_of(self, key: LaneKey) -> Counter[str]:
        """Count the seats of a lane that each caller has."""
        return Counter(tenant.job.caller for tenant in self.lanes[key].tenants if tenant)

    def _surplus(self, key: LaneKey, picture: Picture, level: Callable[[Picture], int]) -> int | None:
        """Return the seat of a full lane that its tenant gives up for a picture that waits; None where nobody does.

        A tenant of a lower level does; and one whose caller has two seats more, or one where the other has none and
        they have run and waited for a while. So many are paused at most as PAUSED says.
        """
        if not picture.pauses and self._queue.paused_in(key) >= PAUSED * self.seats:
            return None
        callers, high = self._seats_of(key), level(picture)
        seats, waited = callers[picture.job.caller], self._turn - picture.turn
        surplus: list[tuple[int, int, int, int]] = []  # the first of them gives up its seat
        for seat, tenant in enumerate(self.lanes[key].tenants):
            assert tenant
            theirs, caller = level(tenant), tenant.job.caller
            more = callers[caller] - seats if caller != picture.job.caller else 0
            settled = tenant.ran >= _FEW or not tenant.pauses
            turns = more == 1 and not seats and tenant.ran >= _SLICE and waited >= _SLICE
            # Of one caller's equals some have waited longer than others; they take nothing from each other.
            lower = theirs < high and (caller != picture.job.caller or _priority(tenant) < _priority(picture))
            if lower or (theirs == high and ((more > 1 and settled) or turns)):
                surplus.append((theirs, -callers[caller], -tenant.arrival, seat))
        return min(surplus)[-1] if surplus else None

    def free(self, key: LaneKey, seat: int) -> None:
        self.moves += 1
        self.lanes[key].tenants[seat] = None

    def finish(self, key: LaneKey, seat: int) -> None:
        """Empty a seat whose picture has had its last evaluation; the picture waits for the decoder from now on."""
        if tenant := self.lanes[key].tenants[seat]:
            self.undecoded.append(tenant)
        self.free(key, seat)

    def decoding(self, picture: Picture) -> None:
        """Note that the decoding of a picture begins."""
        self.moves += 1
        if picture in self.undecoded:
            self.undecoded.remove(picture)

    def next_step(
        self,
        now: float,
        row: Callable[[LaneKey], float],
        step: Callable[[LaneKey, int], float],
        behind: Behind = THOSE_HERE,
    ) -> tuple[LaneKey, list[int]] | None:
        """Return the lane that steps now, and which of its seats; None where nobody sits. See Share.next."""
        if (turn := self.same_step()) is not None:
            return turn
        level = self.levels(now)
        seated = [
            Seated(key, seat, tenant, Party(level(tenant), tenant.job.caller))
            for key, lane in self.lanes.items()
            for seat, tenant in enumerate(lane.tenants)
            if tenant is not None
        ]
        if not seated:
            return None
        turn = self._share.next(seated, row, step, waiting=self.waiting_count, behind=behind, moves=self.moves)
        return self._stepping(*turn)

    def same_step(self) -> tuple[LaneKey, list[int]] | None:
        """Return what `next_step` chose for such a step, where nobody has come or gone since; None: ask it.

        It needs no lock beside threads that let somebody in: they count the move first, and whose turn it was only the
        device thread notes. A move that is seen a step late came a step later.
        """
        turn = self._share.again(self.moves)
        return None if turn is None else self._stepping(*turn)

    def _stepping(self, key: LaneKey, seats: list[int]) -> tuple[LaneKey, list[int]]:
        self._turn += 1
        for seat in seats:
            if tenant := self.lanes[key].tenants[seat]:
                tenant.turn = self._turn
                tenant.ran += 1
        return key, seats


def _priority(picture: Picture) -> int:
    return picture.job.wish.priority
