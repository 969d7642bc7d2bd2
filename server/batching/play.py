"""The seats and the queue, played forward: when is whose request finished?

Every live row costs its lane's measured row time at each evaluation (on a CPU a row is a call), everybody who sits
advances together, and between two steps the device encodes one new prompt and decodes one finished picture at most
(server/device/turn.py). Nobody sits in a lane before it is made, nor while too many wait for the decoder. While a lane
is made the others' steps are slower; that is left out, as nothing tells by how much.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from server.batching.batcher import Batcher
from server.batching.pace import Pace
from server.job import Job, Picture
from server.wish import LaneKey, Size, Wish


@dataclass(frozen=True)
class Making:
    """Says how long lanes that are not ready yet will take to make. One is made at a time."""

    seconds: Mapping[LaneKey, float] = field(default_factory=dict)  # for each lane; one that is not listed counts as 0
    under_way: LaneKey | None = None
    done: float = 0.0  # seconds that the one under way has had


@dataclass(frozen=True)
class Played:
    """Says when what comes, in seconds from now."""

    ready: dict[LaneKey, float]  # each lane is made
    seated: dict[Job, float] = field(default_factory=dict)  # the first of a job's pictures that waited has a seat
    finished: dict[Job, float] = field(default_factory=dict)  # its last picture's file is there


class _Costs(NamedTuple):
    """Holds what each of a job's pictures takes, and whether its end is wanted."""

    lane: LaneKey
    rows: float  # of an evaluation, on average
    decode: float  # seconds of the device
    file: float  # seconds beside it
    counts: bool


class _Lane:
    """Holds a lane's seats and queue. Pictures of a job that stand together are one entry, with their number."""

    def __init__(self, seats: int, row: float, ready: float) -> None:
        self.free, self.row, self.ready = seats, row, ready
        self.at = 0  # evaluations done
        self.rows = 0.0  # of those who sit
        # A heap: after which evaluation they end, order, number, rows of an evaluation of each on average, job.
        self.live: list[tuple[int, int, int, float, Job]] = []
        self.waiting: deque[tuple[int, int, float, Job]] = deque()  # number, evaluations, seconds of encoding, job


class Play:
    """Plays forward until `newcomer` and all who have a deadline, or `everybody`, are finished.

    `queue` sits down in its order.

    Seats drain as their pictures finish, so that steps become cheaper. With `full` they do not: every step takes as
    many rows as sit and wait at the beginning, up to full seats, for others will have come by then.
    """

    def __init__(
        self,
        batcher: Batcher,
        pace: Pace,
        queue: Iterable[Picture],
        making: Making | None = None,
        *,
        newcomer: Job | None = None,
        full: bool = False,
        everybody: bool = False,
    ) -> None:
        self._pace, self._newcomer, self._everybody = pace, newcomer, everybody
        self._costs: dict[Job, _Costs] = {}
        self._beside: dict[tuple[Size, str], tuple[float, float]] = {}  # seconds of decode and file, by size and format
        self._now, self._order, self._left = 0.0, 0, 0  # seconds; entries that sat down so far; pictures to wait for
        groups = [(job, list(pictures)) for job, pictures in itertools.groupby(queue, key=_job_of)]
        ready = _lanes_ready(batcher, (self._of(job).lane for job, _ in groups), making or Making())
        self.played = Played(ready)
        self._bound, self._undecoded = batcher.seats, 0
        self._backlog: deque[tuple[int, Job]] = deque()  # pictures that wait for the decoder: number, job
        for picture in batcher.undecoded:
            self._left += self._of(picture.job).counts
            self._finish(1, picture.job)
        lanes = {key: _Lane(len(lane.tenants), pace.row(key), ready[key]) for key, lane in batcher.lanes.items()}
        for tenant in batcher.seated:
            self._left += self._of(tenant.job).counts
            self._sit(lanes[self._costs[tenant.job].lane], 1, tenant.evaluations_left, _rows(tenant), tenant.job)
        self._lanes = list(lanes.values())
        self._idle_turn = 0.0
        self._full_turn: float | None = None  # seconds of a step of all lanes, where seats do not drain
        if full:
            self._full_turn = self._charge(lanes, groups)
            alone = newcomer is not None and not self._costs.keys() - {newcomer}
            self._idle_turn = 0.0 if alone else self._full_turn  # when nobody of those here sits any more
        for job, pictures in groups:
            costs, first = self._costs[job], pictures[0]
            waiting, encode = lanes[costs.lane].waiting, job.unencoded * pace.chunk if first.index == 0 else 0.0
            self._left += costs.counts * len(pictures)
            if encode:  # it sits down alone
                waiting.append((1, first.evaluations_left, encode, job))
            if more := len(pictures) - (encode > 0):
                waiting.append((more, first.evaluations_left, 0.0, job))
        self._run()

    def _charge(self, lanes: Mapping[LaneKey, _Lane], groups: list[tuple[Job, list[Picture]]]) -> float:
        """Return the seconds of a step of all who sit and wait, in each lane up to full seats."""
        rows = {key: lane.rows for key, lane in lanes.items()}
        pictures = {key: sum(entry[2] for entry in lane.live) for key, lane in lanes.items()}
        seats = {key: lane.free + pictures[key] for key, lane in lanes.items()}
        for job, waiting in groups:
            costs = self._costs[job]
            rows[costs.lane] += len(waiting) * costs.rows
            pictures[costs.lane] += len(waiting)
        return sum(
            lane.row * rows[key] * min(1.0, seats[key] / pictures[key]) for key, lane in lanes.items() if rows[key]
        )

    def _of(self, job: Job) -> _Costs:
        costs = self._costs.get(job)
        if costs is None:
            wish = job.wish
            counts = self._everybody or job is self._newcomer or job.deadline is not None
            if (beside := self._beside.get((wish.size, wish.format))) is None:
                pace = self._pace
                beside = self._beside[wish.size, wish.format] = (
                    pace.decode(wish.size),
                    pace.file(wish.size, wish.format),
                )
            costs = self._costs[job] = _Costs(wish.lane, _rows_from(wish, 0), *beside, counts)
        return costs

    def _run(self) -> None:
        while self._left:
            steps = self._seat()
            busy = [lane for lane in self._lanes if lane.live]
            coming = [lane.ready for lane in self._lanes if lane.waiting and lane.ready > self._now]
            if busy:
                turn = self._full_turn
                if turn is None:
                    turn = sum(lane.row * lane.rows for lane in busy)
                steps = min(steps, *(lane.live[0][0] - lane.at for lane in busy))
                if coming and turn:
                    steps = min(steps, max(1, math.ceil((min(coming) - self._now) / turn)))
                self._step(busy, int(steps), turn)
            elif self._backlog:
                self._decode(1, self._idle_turn)
            else:
                self._now = min(coming)

    def _seat(self) -> float:
        """Seat who can sit; returns after how many steps to try again, at the latest."""
        if (surplus := self._undecoded - self._bound) >= 0:
            return surplus + 1
        for lane in self._lanes:
            if lane.ready > self._now:
                continue
            while lane.waiting and lane.free:
                number, evaluations, encode, job = lane.waiting.popleft()
                if number > lane.free:
                    lane.waiting.appendleft((number - lane.free, evaluations, encode, job))
                    number = lane.free
                self.played.seated.setdefault(job, self._now)
                self._sit(lane, number, evaluations, self._costs[job].rows, job)
                if encode:  # the others step before the next one sits down
                    self._now += encode
                    return 1
        return math.inf

    def _sit(self, lane: _Lane, number: int, evaluations: int, rows: float, job: Job) -> None:
        self._order += 1
        heapq.heappush(lane.live, (lane.at + evaluations, self._order, number, rows, job))
        lane.rows += number * rows
        lane.free -= number

    def _step(self, busy: list[_Lane], steps: int, turn: float) -> None:
        """Step all lanes so often; after each step one picture is decoded."""
        decodes = min(steps, self._undecoded)
        self._decode(decodes, turn)
        self._now += (steps - decodes) * turn
        for lane in busy:
            lane.at += steps
            while lane.live and lane.live[0][0] <= lane.at:
                _, _, number, rows, job = heapq.heappop(lane.live)
                lane.rows -= number * rows
                lane.free += number
                self._finish(number, job)
        if steps > decodes and self._undecoded:  # in the last turn the decoder had nothing else to do
            self._decode(1, 0.0)

    def _finish(self, number: int, job: Job) -> None:
        self._backlog.append((number, job))
        self._undecoded += number

    def _decode(self, pictures: int, turn: float) -> None:
        """Decode so many pictures, each after a turn."""
        self._undecoded -= pictures
        finished = self.played.finished
        while pictures:
            number, job = self._backlog.popleft()
            if number > pictures:
                self._backlog.appendleft((number - pictures, job))
                number = pictures
            pictures -= number
            costs = self._costs[job]
            self._now += number * (turn + costs.decode)
            finished[job] = max(finished.get(job, 0.0), self._now + costs.file)
            self._left -= costs.counts * number


def _rows(tenant: Picture) -> float:
    return _rows_from(tenant.job.wish, tenant.reached)


def _rows_from(wish: Wish, reached: int) -> float:
    """Return the UNet rows of an evaluation on average over those that are left: whole numbers, but of an interval.

    When a picture is guided is left out: its rows add up to what they are.
    """
    reached = min(reached, wish.table.evaluations - 1)  # who has had its last is about to leave
    return wish.rows_left(reached) / (wish.table.evaluations - reached)


def _job_of(picture: Picture) -> Job:
    return picture.job


def _lanes_ready(batcher: Batcher, order: Iterable[LaneKey], making: Making) -> dict[LaneKey, float]:
    """Forecast the seconds until each lane is ready, 0 for those that are.

    They are made one after the other, in the order of the queue.
    """
    ready, at = dict.fromkeys(batcher.lanes, 0.0), 0.0
    for key in dict.fromkeys([making.under_way, *order] if making.under_way else order):
        if not batcher.lanes[key].ready:
            at += max(0.0, making.seconds.get(key, 0.0) - (making.done if key == making.under_way else 0.0))
            ready[key] = at
    return ready
