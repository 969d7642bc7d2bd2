"""Who sits, who waits and what is to be decoded while the queue is played forward (play.py); what each thing takes."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from server.batching.parties import Away, PlayedLane, PlayedParty, divided
from server.batching.seated import Party
from server.job import Job
from server.pace.pace import Pace
from server.wish import LaneKey, Size

NEARLY = 1e-9  # of an evaluation: sums of shares are not exact


@dataclass(frozen=True)
class Played:
    """Says when what comes, in seconds from now."""

    ready: dict[LaneKey, float]  # each lane is made
    seated: dict[Job, float] = field(default_factory=dict)  # the first of a job's pictures that waited has a seat
    finished: dict[Job, float] = field(default_factory=dict)  # its last picture's file is there


class _Costs(NamedTuple):
    """Holds what each of a job's pictures takes, and whether its end is wanted."""

    lane: LaneKey
    rows: float  # of an evaluation, on average over the run: a guided interval is not told apart
    decode: float  # seconds of the device
    file: float  # seconds beside it
    judge: float  # seconds beside it, of one picture after the other
    counts: bool


class Hall:
    """Holds lanes and parties at a moment that goes on. Nobody is in it at first."""

    def __init__(self, pace: Pace, bound: int, newcomer: Job | None, *, everybody: bool) -> None:
        """`bound`: of undecoded pictures, beyond which nobody sits down. Ends of jobs count as Play says."""
        self._pace, self._newcomer, self._everybody = pace, newcomer, everybody
        self.played = Played({})
        self._costs: dict[Job, _Costs] = {}
        self._beside: dict[tuple[Size, str], tuple[float, float]] = {}  # seconds of decode and file, by size and format
        self._judge_free = pace.judge_wait
        self._now, self._order, self._left = 0.0, 0, 0  # seconds; entries that sat down so far; pictures to wait for
        self._bound, self._undecoded = bound, 0
        self._backlog: deque[tuple[int, Job]] = deque()  # pictures that wait for the decoder: number, job
        self._lanes: list[PlayedLane] = []
        self._parties: dict[Party, PlayedParty] = {}
        self._live: dict[Party, PlayedParty] = {}  # those that sit
        self._away = Away({})
        self._early = 0  # evaluations that who sits down need not have

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
            rows, judge = wish.rows_left() / wish.table.evaluations, 0.0 if wish.keep is None else self._pace.judge
            costs = self._costs[job] = _Costs(wish.lane, rows, *beside, judge, counts)
        return costs

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
        if party not in self._live:
            self._live[party] = seats
            self._away.comes(party)
        lane.seats[party] += number
        lane.free -= number

    def _leave(self, lane: PlayedLane, party: Party, number: int, job: Job) -> None:
        seats = self._parties[party]
        seats.change(lane, -number * self._costs[job].rows)
        if not seats.live:
            del self._live[party]
            self._away.leaves(party)
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
            while seats.live and seats.live[0][0] <= seats.at + NEARLY:
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
            finished[job] = max(finished.get(job, 0.0), self._beside_device(self._now, costs, number, turn))
            self._left -= costs.counts * number

    def _beside_device(self, decoded: float, costs: _Costs, number: int, turn: float) -> float:
        """Return when a picture's file is there, the last of so many that were decoded one after the other."""
        if costs.judge:
            first = decoded - (number - 1) * (turn + costs.decode)
            begun = max(first, self._judge_free)
            decoded = self._judge_free = max(begun + number * costs.judge, decoded + costs.judge)
        return decoded + costs.file
