"""The seats and the queue, played forward: when is whose request finished?

Every live row costs its lane's measured row time at each evaluation (on a CPU a row is a call), and between two steps
the device encodes one new prompt and decodes one finished picture at most (server/device/turn.py). Parties of the
highest level that sits have equal shares of the time, as server/batching/share.py deals them out step by step; all that
a party has advances together. Seats are given and taken as the batcher does. Nobody sits in a lane before it is made,
nor while too many wait for the decoder. While a lane is made the others' steps are slower; that is left out, as nothing
tells by how much. Nobody rises to another level meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from server.batching.batcher import Batcher
from server.batching.pace import Pace
from server.batching.parties import PlayedLane, PlayedParty, divided
from server.batching.share import Party
from server.job import Job, Picture
from server.wish import LaneKey, Size


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


_NEARLY = 1e-9  # of an evaluation: sums of shares are not exact


class _Costs(NamedTuple):
    """Holds what each of a job's pictures takes, and whether its end is wanted."""

    lane: LaneKey
    rows: float  # of an evaluation, on average over the run: a guided interval is not told apart
    decode: float  # seconds of the device
    file: float  # seconds beside it
    counts: bool


class Play:
    """Plays forward until `newcomer` and all who have a deadline, or `everybody`, are finished.

    `queue` sits down in its order.

    Seats drain as their pictures finish, so that steps become cheaper. With `full` they do not: every step takes as
    many rows as sit and wait at the beginning, up to full seats, for others will have come by then. `hopeful`: who
    shares the device may have its steps before the others have theirs. `now`: monotonic seconds.
    """

    def __init__(
        self,
        batcher: Batcher,
        pace: Pace,
        queue: Iterable[Picture],
        making: Making | None = None,
        *,
        now: float = 0.0,
        newcomer: Job | None = None,
        full: bool = False,
        hopeful: bool = False,
        everybody: bool = False,
    ) -> None:
        self._pace, self._newcomer, self._everybody = pace, newcomer, everybody
        self._costs: dict[Job, _Costs] = {}
        self._beside: dict[tuple[Size, str], tuple[float, float]] = {}  # seconds of decode and file, by size and format
        self._now, self._order, self._left = 0.0, 0, 0  # seconds; entries that sat down so far; pictures to wait for
        level, seated = batcher.levels(now), batcher.seated

        def alike(picture: Picture) -> tuple[Job, Party, int, bool]:
            new = not (picture.index or picture.reached or picture.pauses)
            return picture.job, Party(level(picture), picture.job.caller), picture.evaluations_left, new

        groups = [(alike(pictures[0]), len(pictures)) for pictures in _groups(queue)]
        ready = _lanes_ready(batcher, (self._of(kind[0]).lane for kind, _ in groups), making or Making())
        self.played = Played(ready)
        self._bound, self._undecoded = batcher.seats, 0
        self._backlog: deque[tuple[int, Job]] = deque()  # pictures that wait for the decoder: number, job
        for picture in batcher.undecoded:
            self._left += self._of(picture.job).counts
            self._finish(1, picture.job)
        lanes = {key: PlayedLane(len(lane.tenants), pace.row(key), ready[key]) for key, lane in batcher.lanes.items()}
        self._lanes = list(lanes.values())
        sitting = [alike(tenant) for tenant in seated]
        parties = [kind[1] for kind in (*sitting, *(kind for kind, _ in groups))]
        self._parties: dict[Party, PlayedParty] = {party: PlayedParty() for party in dict.fromkeys(parties)}
        self._live: dict[Party, PlayedParty] = {}  # those that sit
        self._early = 1 if hopeful and len(self._parties) > 1 else 0  # evaluations
        for job, party, evaluations, _ in sitting:
            self._left += self._of(job).counts
            self._sit(lanes[self._costs[job].lane], party, 1, evaluations, job)
        self._sharing: Counter[int] | None = None  # parties of a level, where they do not leave
        self._idle_turn = 0.0
        for (job, party, evaluations, new), number in groups:
            lane, encode = lanes[self._of(job).lane], job.unencoded * pace.chunk if new else 0.0
            self._left += self._costs[job].counts * number
            lane.wait(party, (number, evaluations, encode, job))
        if full:
            self._charge()
            self._sharing = Counter(party.level for party in self._parties)
            alone = newcomer is not None and not self._costs.keys() - {newcomer}
            turns = sum(seats.cost for seats in self._parties.values())
            self._idle_turn = 0.0 if alone else turns  # when nobody of those here sits any more
        self._run()

    def _charge(self) -> None:
        """Charge each party with the rows of all that it has, sitting and waiting, in its part of a lane's seats."""
        for seats in self._parties.values():
            seats.cost, seats.drains = 0.0, False
        for lane in self._lanes:
            pictures, rows, seats = (
                Counter(lane.seats),
                dict.fromkeys(self._parties, 0.0),
                lane.free + lane.seats.total(),
            )
            for party, line in lane.waiting.items():
                for number, _, _, job in line:
                    pictures[party] += number
                    rows[party] += number * self._costs[job].rows
            for party, part in divided(pictures, seats).items():
                mine = self._parties[party]
                mine.cost += lane.row * (rows[party] + mine.rows[lane]) * part

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
            costs = self._costs[job] = _Costs(wish.lane, wish.rows_left() / wish.table.evaluations, *beside, counts)
        return costs

    def _run(self) -> None:
        while self._left:
            steps = self._seat()
            top = max((party.level for party in self._live), default=0)
            busy = [seats for party, seats in self._live.items() if party.level == top]
            coming = [lane.ready for lane in self._lanes if lane.waiting and lane.ready > self._now]
            if busy:
                # In a turn each has what the smallest of them takes for an evaluation of all that it has.
                least = min(seats.cost for seats in busy)
                turn = least * (len(busy) if self._sharing is None else self._sharing[top])
                parts = [(seats, least / seats.cost if least else 1.0) for seats in busy]
                steps = min(steps, *((seats.live[0][0] - seats.at) / part for seats, part in parts))
                if coming and turn:
                    steps = min(steps, max(1, (min(coming) - self._now) / turn))
                self._step(parts, max(0, math.ceil(steps - _NEARLY)), turn)
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
            while lane.waiting:
                party = lane.next
                if lane.free <= 0 and (len(self._parties) == 1 or not self._room(lane, party)):
                    break
                most = max(1, lane.free) if len(lane.waiting) == 1 else 1
                if lane.waiting[party][0][2]:  # who brings a prompt sits down alone
                    most = 1
                number, evaluations, encode, job = lane.take(party, most)
                self.played.seated.setdefault(job, self._now)
                self._sit(lane, party, number, evaluations, job)
                if encode:  # the others step before the next one sits down
                    self._now += encode
                    return 1
        return math.inf

    def _room(self, lane: PlayedLane, party: Party) -> bool:
        """Pause somebody in a full lane, as Batcher.seat_next does; False where nobody is.

        Where there are more callers than seats they take turns: each sits, as it were, and has its share of the time.
        """
        others = [(other.level, -seats, other.caller) for other, seats in lane.seats.items() if other != party]
        level, seats, caller = min(others, default=(party.level + 1, 0, ""))
        if level > party.level:
            return False
        if level == party.level and -seats < lane.seats[party] + 2:
            return not lane.seats[party]
        other = self._parties[last := Party(level, caller)]
        index = max((i for i, entry in enumerate(other.live) if entry[3] is lane), key=lambda i: other.live[i][1])
        end, order, number, _, job = other.live.pop(index)
        if number > 1:
            other.live.append((end, order, number - 1, lane, job))
        heapq.heapify(other.live)
        self._leave(lane, last, 1, job)
        lane.wait(last, (1, end - other.at, 0.0, job), first=True)
        return True

    def _sit(self, lane: PlayedLane, party: Party, number: int, evaluations: float, job: Job) -> None:
        self._order += 1
        seats = self._parties[party]
        heapq.heappush(seats.live, (seats.at + max(0, evaluations - self._early), self._order, number, lane, job))
        seats.change(lane, number * self._costs[job].rows)
        self._live[party] = seats
        lane.seats[party] += number
        lane.free -= number

    def _leave(self, lane: PlayedLane, party: Party, number: int, job: Job) -> None:
        seats = self._parties[party]
        seats.change(lane, -number * self._costs[job].rows)
        if not seats.live:
            del self._live[party]
        lane.seats[party] -= number
        if not lane.seats[party]:
            del lane.seats[party]
        lane.free += number

    def _step(self, parts: list[tuple[PlayedParty, float]], steps: int, turn: float) -> None:
        """Step so often, each its part of an evaluation; after each step one picture is decoded."""
        decodes = min(steps, self._undecoded)
        self._decode(decodes, turn)
        self._now += (steps - decodes) * turn
        for seats, part in parts:
            seats.at += steps * part
        for party, seats in list(self._live.items()):
            while seats.live and seats.live[0][0] <= seats.at + _NEARLY:
                _, _, number, lane, job = heapq.heappop(seats.live)
                self._leave(lane, party, number, job)
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


def _groups(queue: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Group pictures that stand together and take the same: those of a job, but who brings its prompt or has begun."""
    for _, group in itertools.groupby(queue, key=lambda picture: picture.job):
        pictures = list(group)
        begun = any(picture.reached or picture.pauses for picture in pictures)
        first = len(pictures) if begun else int(pictures[0].index == 0)
        yield from ([picture] for picture in pictures[:first])
        if pictures[first:]:
            yield pictures[first:]


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
