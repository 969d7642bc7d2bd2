"""A server in which time is a number: the batching room's own parts, and a device whose steps take what a test says.

Turns are those of server/device/turn.py: who is late or hopeless leaves, who waits sits down, a step, a decode.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from server.batching.admission import Admission
from server.batching.alike import Alike
from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import device_seconds, endangers, outlook, pictures_of
from server.caller import LOCAL
from server.device.turn import Turn
from server.errors import Busy, TooLate
from server.job import Job
from server.pace.margin import Margin
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

LANE = LaneKey(8, 8, 1)
SIZE = (8, 8)


@dataclass
class Simulated:
    """`speed(now)` is by how much everything takes longer than said here; `shaken` is each thing's own noise.

    A share `sliced` of them takes ten times as long: other processes have the processor meanwhile.
    """

    seats: int = 8
    row: float = 0.005  # seconds
    encode: float = 0.004
    decode: float = 0.012
    file: float = 0.004
    speed: Callable[[float], float] = lambda now: 1.0
    shaken: float = 0.1
    sliced: float = 0.0
    step: Callable[[int], float] | None = None  # seconds of a step of so many rows; None: `row` for each
    level_seconds: float = math.inf
    now: float = 0.0
    sent: int = 0
    admitted: list[Job] = field(default_factory=list)
    delivered: list[tuple[float, Job]] = field(default_factory=list)  # when
    seat_steps: int = 0
    steps: int = 0
    pauses: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # row evaluations of each caller

    def __post_init__(self) -> None:
        self.batcher, self.margin, self.admission = Batcher([LANE], self.seats), Margin(), Admission()
        self.demand, self.alike = Demand(), Alike()
        self.pace = Pace({LANE: self.row})
        self._draw = random.Random(7)
        self._took = 0.0  # seconds of the last step
        self._files: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()

    @property
    def capacity(self) -> float:
        """Twelve-step pictures a second, with nothing lost, at a speed of 1."""
        return 1 / (1 + 9 * self.sliced) / (12 * 2 * self.row + self.encode + self.decode)

    def _spend(self, seconds: float) -> float:
        noise = max(0.5, self._draw.gauss(1, self.shaken))
        if self.sliced and self._draw.random() < self.sliced:
            noise = 10.0
        took = seconds * self.speed(self.now) * noise
        self.now += took
        return took

    def submit(
        self,
        evaluations: int,
        seconds: float | None,
        images: int = 1,
        rows: int = 2,
        caller: str = LOCAL,
        priority: int = 0,
        weight: float = 1.0,
    ) -> Job | None:
        """Let a job in, or not; it has a deadline so many seconds from now."""
        self.sent += 1
        job = idle_job(wish(LANE, evaluations, rows, images, priority))
        job.caller, job.weight = caller, weight
        job.arrived, job.unencoded = self.now, 1
        job.deadline = None if seconds is None else self.now + seconds
        asks = min(device_seconds(pictures_of(job), self.pace), math.inf if seconds is None else seconds)
        self.demand.note(caller, priority, asks, self.now, weight)
        try:
            margin = self.margin.value(self.now)
            job.expected = self.admission.check(
                job, self.batcher, self.pace, self.now, margin, demand=self.demand, alike=self.alike
            ).finish
        except (Busy, TooLate):
            return None
        self.batcher.add(job)
        self.admitted.append(job)
        return job

    def _learn(self, job: Job, end: float) -> None:
        if job.expected:
            self.margin.ended(self.now, (end - job.arrived) / job.expected)
            job.expected = None

    def _leave(self, job: Job, end: float) -> None:
        self.batcher.drop([job])
        job.over = True
        self._learn(job, end)

    def turn(self) -> None:
        for job in {p.job for p in (*self.batcher.seated, *self.batcher.undecoded, *self.batcher.waiting)}:
            if job.expired(self.now):
                self._leave(job, self.now)
        while (seen := outlook(self.batcher, self.pace, self.now)).hopeless is not None:
            self._leave(seen.hopeless, self.now + seen.left)
        self.batcher.level_seconds = self.level_seconds
        until = self.now + Turn.between * self._took
        while place := self.batcher.seat_next(
            self.now, lambda picture: endangers(self.batcher, picture, self.pace, self.now)
        ):
            self.pauses += place.paused is not None
            if place.picture.index == 0 and not place.picture.pauses:
                self.pace.encoded(1, self._spend(self.encode))
                if self.now >= until:
                    break
        if (turn := self.batcher.next_step(self.now, self.pace.row, self.pace.step, self.pace.behind)) is not None:
            tenants = self.batcher.lanes[LANE].tenants
            live = [(seat, picture) for seat in turn[1] if (picture := tenants[seat])]
            rows = sum(picture.rows for _, picture in live)
            took = self._spend(self.step(rows) if self.step else rows * self.row)
            self._took = took
            self.pace.stepped(LANE, rows, took, self.now)
            self.seat_steps += len(live)
            self.steps += 1
            for seat, picture in live:
                picture.stepped += took
                self.rows[picture.job.caller] += picture.rows
                picture.reached += 1
                if not picture.evaluations_left:
                    self.batcher.finish(LANE, seat)
        until, begun = self.now + Turn.between * self._took, False
        while self.batcher.undecoded and not (begun and self.now >= until):
            picture, begun = self.batcher.undecoded[0], True
            self.batcher.decoding(picture)
            self.pace.decoded(SIZE, self._spend(self.decode))
            self.pace.written(SIZE, "png", self.file)
            heapq.heappush(self._files, (self.now + self.file, next(self._numbers), picture.job))
        while self._files and self._files[0][0] <= self.now:
            when, _, job = heapq.heappop(self._files)
            job.left -= 1
            if not job.left and not job.over and not job.expired(when):
                self.delivered.append((when, job))
                self._learn(job, when)

    def run(self, arrivals: list[tuple[float, Callable[[], object]]], seconds: float) -> None:
        """Play so many seconds; each arrival is when, and what to do then. An idle device waits for the next."""
        coming = iter(sorted(arrivals, key=lambda arrival: arrival[0]))
        following = next(coming, None)
        while self.now < seconds:
            while following and following[0] <= self.now:
                following[1]()
                following = next(coming, None)
            before = self.now
            self.turn()
            if self.now == before:  # nothing to do
                ends = [following[0]] if following else []
                ends += [self._files[0][0]] if self._files else []
                self.now = min(ends, default=seconds)
                self.pace.rested(self.now - before)
