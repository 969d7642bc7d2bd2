"""The batcher knows who waits and who sits in which seat. It has no thread, clock or device: times are arguments."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable

from server.job import Job, Picture
from server.wish import LaneKey


class Lane:
    """Holds the seats of one lane, and how much step time they have had. Nobody sits before the lane is ready."""

    def __init__(self, seats: int, *, ready: bool) -> None:
        self.ready = ready  # it is made: its engine and its buffers are there
        self.wanted = False  # by somebody who could not wait for it
        self.tenants: list[Picture | None] = [None] * seats
        self.spent = 0.0  # seconds of steps: lanes take turns by it

    @property
    def live(self) -> list[int]:
        return [seat for seat, tenant in enumerate(self.tenants) if tenant]


class Batcher:
    """Seats pictures: higher priorities first, equal ones in order of arrival. No lane's queue holds up another's.

    `lanes` are ready (made already); those that `open` adds are not.
    """

    def __init__(self, lanes: Iterable[LaneKey], seats: int) -> None:
        self.seats = seats  # of a lane
        self.lanes = {key: Lane(seats, ready=True) for key in lanes}
        self._queue: list[tuple[int, int, Picture]] = []  # sorted: minus priority, arrival
        self._arrivals = itertools.count()
        self.undecoded: list[Picture] = []  # finished, in the order in which they will be decoded

    def open(self, key: LaneKey) -> bool:
        """Add a lane with empty seats; False when there is one already."""
        new = key not in self.lanes
        if new:
            self.lanes[key] = Lane(self.seats, ready=False)
        return new

    def add(self, job: Job) -> None:
        for index in range(job.wish.images):
            bisect.insort(self._queue, (-job.wish.priority, next(self._arrivals), Picture(job, index)))

    @property
    def waiting(self) -> list[Picture]:
        """List the pictures that wait, in the order in which they will be seated."""
        return [picture for _, _, picture in self._queue]

    @property
    def waiting_count(self) -> int:
        return len(self._queue)

    @property
    def waiting_jobs(self) -> int:
        return len({picture.job for _, _, picture in self._queue})

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
            self.crowded or not any(self.lanes[picture.job.wish.lane].ready for _, _, picture in self._queue)
        )

    @property
    def unmade(self) -> LaneKey | None:
        """Return the lane to make next: that of the first in the queue who waits for one, then those that were wanted.

        None where every lane that anybody waits for, or wanted, is ready.
        """
        queued = (picture.job.wish.lane for _, _, picture in self._queue)
        wanted = (key for key, lane in self.lanes.items() if lane.wanted)
        return next((key for key in itertools.chain(queued, wanted) if not self.lanes[key].ready), None)

    @property
    def rows_live(self) -> int:
        """Count the UNet rows of all who sit."""
        return sum(
            tenant.job.wish.rows(tenant.reached) for lane in self.lanes.values() for tenant in lane.tenants if tenant
        )

    def ahead_of(self, priority: int) -> int:
        """Count the pictures that would be seated before a new job of this priority."""
        return sum(1 for negated, _, _ in self._queue if -negated >= priority)

    def drop(self, gone: Iterable[Job]) -> list[tuple[LaneKey, int]]:
        """Take these jobs out of the queue, their seats and the decoder's queue; returns the seats that they left."""
        jobs = set(gone)
        self.undecoded = [picture for picture in self.undecoded if picture.job not in jobs]
        self._queue = [entry for entry in self._queue if entry[2].job not in jobs]
        left = []
        for key, lane in self.lanes.items():
            for seat in lane.live:
                tenant = lane.tenants[seat]
                if tenant and tenant.job in jobs:
                    lane.tenants[seat] = None
                    left.append((key, seat))
        return left

    def seat_next(
        self, endangers: Callable[[Picture], bool] = lambda picture: False
    ) -> tuple[LaneKey, int, Picture] | None:
        """Give a free seat to the first in the queue whose lane is ready and has one; returns lane, seat and picture.

        None where nobody can be seated, or where that one `endangers` the deadline of somebody who sits: it waits then,
        and so do those behind it, lest it starve.
        """
        if self.crowded:
            return None
        for place, (_, _, picture) in enumerate(self._queue):
            key = picture.job.wish.lane
            lane = self.lanes[key]
            if lane.ready and None in lane.tenants:
                if endangers(picture):
                    return None
                seat = lane.tenants.index(None)
                # Lanes take turns by the step time that they have had. One that was empty for a while has had little,
                # and would now step alone until it caught up; so it starts level with the least of those that step.
                if not lane.live:
                    lane.spent = max(lane.spent, min((x.spent for x in self.lanes.values() if x.live), default=0.0))
                lane.tenants[seat] = picture
                del self._queue[place]
                return key, seat, picture
        return None

    def free(self, key: LaneKey, seat: int) -> None:
        self.lanes[key].tenants[seat] = None

    def finish(self, key: LaneKey, seat: int) -> None:
        """Empty a seat whose picture has had its last evaluation; the picture waits for the decoder from now on."""
        if tenant := self.lanes[key].tenants[seat]:
            self.undecoded.append(tenant)
        self.free(key, seat)

    def decoding(self, picture: Picture) -> None:
        """Note that the decoding of a picture begins."""
        if picture in self.undecoded:
            self.undecoded.remove(picture)

    def next_lane(self) -> LaneKey | None:
        """Return the lane with live seats that has had the least step time; None where nobody sits."""
        live = [key for key, lane in self.lanes.items() if lane.live]
        return min(live, key=lambda key: self.lanes[key].spent, default=None)
