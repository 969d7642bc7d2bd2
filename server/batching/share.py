"""The callers' shares of the device, in virtual time: which seats step next.

Between callers: start-time fair queueing (Goyal, Vin, Cheng 1996), of row evaluations instead of packets. A party is
what one caller has at one level of priority; whoever has had least comes first. One that begins to sit starts level
with the least of the others, so being away saves up nothing, and a caller alone gets everything. A caller of weight 2
is charged half of what it has, and so has twice as much.

Between the jobs of a caller: the one with the least left steps first, and with it as many more as gain by sharing a
step (joined.py). Where one has a deadline all of them step.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from server.batching.joined import by_turn, by_work, is_oldests, joined
from server.batching.seated import Party, Seated
from server.job import Job
from server.pace.behind import THOSE_HERE, Behind
from server.wish import LaneKey

_LOOKS = 16  # steps of a lane, of which nobody rides in one: what a step without riders takes is measured anew
# A step of all that a party has is measured anew as well: after so many of its lane for each job that it holds up.
_LEAST = 1e-9  # seconds of a row: else nobody would ever have had anything
_ALIKE = 2  # times the row evaluations of the first are about as many
_FREE = 0.05  # of a step: who makes it longer by less than this rides for nothing

_Who = TypeVar("_Who", bound=Hashable)


class _Standing(NamedTuple):
    """Holds the choices of a party that has all who sit, in one lane, while nobody comes or goes."""

    moves: int  # Batcher.moves meanwhile
    party: Party
    lane: LaneKey
    alone: tuple[LaneKey, list[int]] | None  # the one picture: nobody need look, though it may have other rows later
    seats: dict[bool, list[int]]  # of several, by whether the job that came first has its turn


class Share:
    """Remembers what each party has had in each lane, in seconds of row evaluations: as long as it sits there."""

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}
        self._lanes: dict[tuple[Party, LaneKey], float] = {}
        # What is due each so many steps is counted apart: who steps by turns with others would always be due, or never.
        self._turns: dict[tuple[Party, LaneKey], int] = {}  # steps that each has had, as long as it sits
        self._steps: Counter[LaneKey] = Counter()
        self._most: Counter[LaneKey] = Counter()  # rows of a step so far
        self._whole: Counter[LaneKey] = Counter()  # steps until a party steps all that it has
        self._standing: _Standing | None = None
        self._repeated = 0  # steps that a picture alone has had by `again`
        self._known: set[tuple[LaneKey, int]] = set()  # lanes and rows of which there was a step

    def again(self, moves: int) -> tuple[LaneKey, list[int]] | None:
        """Return what `next` chose for such a step, where nobody has come or gone since; None: ask it.

        Where there are several it is asked anew each so many steps, whatever happens. Beside a step of 6 ms, after
        which every cache is cold, it takes half a millisecond with eight pictures (AMD Zen 4).
        """
        if (kept := self._standing) is None or kept.moves != moves:
            return None
        if kept.alone is not None:
            self._repeated += 1
            return kept.alone
        if self._looks(kept.lane):
            return None
        who = _, lane = kept.party, kept.lane
        if (seats := kept.seats.get(is_oldests(self._turns[who]))) is None:
            return None
        self._turns[who] += 1
        self._whole[lane] -= 1
        self._steps[lane] += 1
        return lane, seats

    def _count_repeated(self) -> None:
        """Count the steps that a picture had alone. Each is one of all that there is."""
        number, self._repeated = self._repeated, 0
        if (kept := self._standing) is not None and number:
            self._turns[kept.party, kept.lane] += number
            self._steps[kept.lane] += number
            left = self._whole[kept.lane] - number
            self._whole[kept.lane] = left if left >= 0 else left % (_LOOKS + 1)

    def next(
        self,
        seated: Sequence[Seated],
        row: Callable[[LaneKey], float],
        step: Callable[[LaneKey, int], float],
        *,
        waiting: int = 0,
        behind: Behind = THOSE_HERE,
        moves: int = 0,
    ) -> tuple[LaneKey, list[int]]:
        """Choose a lane and its seats that step now, and charge them; somebody sits.

        Of the highest level the party that has had least steps, and in its lane those who have had no more than it
        will have had: each as many pictures as bring it level, of the jobs whose turn it is. So a caller with one
        picture and one with eight have a step each of two rows. A party's lanes take turns. Others in the lane ride
        along where that costs nothing. `row`: seconds of a row of a lane; `step`: of a step of so many; `waiting`:
        pictures without a seat; `behind`: see Behind; `moves`: see Batcher.moves.
        """
        self._count_repeated()
        party, lane = seated[0].party, seated[0].lane
        if any(one.party != party or one.lane != lane for one in seated):
            self._standing = None
            lane, chosen = self._beside_others(seated, row, step, waiting, behind)
            return lane, sorted(self._with_riders(lane, chosen, seated, step))
        oldests = is_oldests(self._turns.get((party, lane), 0))
        looks = len(seated) > 1 and (self._looks(lane) or sum(one.picture.rows for one in seated) > self._most[lane])
        chosen = self._alone(seated, step, waiting, behind)
        seats = sorted(self._with_riders(lane, chosen, seated, step))
        stepped = lane, sum(one.picture.rows for one in seated if one.seat in seats)
        # Riders who do not all fit take turns, and a step of so many rows for the first time says what is better next.
        if looks or len(seats) not in (len(chosen), len(seated)) or stepped not in self._known:
            self._standing = None
        else:
            if self._standing is None or self._standing[:3] != (moves, party, lane):
                self._standing = _Standing(moves, party, lane, (lane, seats) if len(seated) == 1 else None, {})
            self._standing.seats[oldests] = seats
        self._known.add(stepped)
        return lane, seats

    def _looks(self, lane: LaneKey) -> bool:
        """Return whether the coming step measures anew what a step of all takes, or one without riders."""
        return self._whole[lane] <= 0 or (self._steps[lane] + 1) % _LOOKS == 0

    def _alone(
        self, seated: Sequence[Seated], step: Callable[[LaneKey, int], float], waiting: int, behind: Behind
    ) -> Sequence[Seated]:
        """Choose of one party's pictures in one lane. It is charged nothing: whoever comes begins level with it."""
        who = party, lane = seated[0].party, seated[0].lane
        self._had = {party: self._had.get(party, 0.0)}
        self._lanes = {who: self._lanes.get(who, 0.0)}
        self._turns = {who: self._turns.get(who, 0)}
        self._whole[lane] -= 1
        return self._joined(lane, seated, math.inf, step, waiting=waiting, behind=behind)

    def _beside_others(
        self,
        seated: Sequence[Seated],
        row: Callable[[LaneKey], float],
        step: Callable[[LaneKey, int], float],
        waiting: int,
        behind: Behind,
    ) -> tuple[LaneKey, Sequence[Seated]]:
        sitting: dict[Party, list[Seated]] = {}
        for one in seated:
            sitting.setdefault(one.party, []).append(one)
        top = max(party.level for party in sitting)
        weights = {party: theirs[0].picture.job.weight for party, theirs in sitting.items() if party.level == top}
        costs = {  # what an evaluation of all that each has is charged with
            party: sum(one.picture.rows * max(row(one.lane), _LEAST) for one in sitting[party]) / weight
            for party, weight in weights.items()
        }
        self._had = _kept(self._had, {party: party.level for party in sitting})
        self._lanes = _kept(self._lanes, {(one.party, one.lane): one.party for one in seated})
        turns: dict[Party, float] = {}  # what each has had in the lane that is its next
        for (party, _), had in self._lanes.items():
            turns[party] = min(had, turns.get(party, had))
        first = min(costs, key=lambda party: (self._had[party], costs[party]))
        lane = min((one.lane for one in sitting[first]), key=lambda lane: self._lanes[first, lane])
        price, quantum = max(row(lane), _LEAST), min(costs.values())
        level = self._had[first] + quantum
        slack = min(price / max(weights.values()), quantum) / 2  # seconds are sums, and these are not exact
        chosen: list[Seated] = []
        self._whole[lane] -= 1
        self._turns = {who: self._turns.get(who, 0) for who in self._lanes}
        for party in costs:
            here = self._lanes.get((party, lane), math.inf) <= turns[party] + slack
            if here and (short := level - slack - self._had[party]) > 0:
                theirs = [one for one in sitting[party] if one.lane == lane]
                mine = self._joined(lane, theirs, short / price * weights[party], step, waiting=waiting, behind=behind)
                spent = price * sum(one.picture.rows / one.picture.job.weight for one in mine)
                self._had[party] += spent
                self._lanes[party, lane] += spent
                chosen += mine
        return lane, chosen

    def _with_riders(
        self,
        lane: LaneKey,
        chosen: Sequence[Seated],
        seated: Sequence[Seated],
        step: Callable[[LaneKey, int], float],
    ) -> set[int]:
        """Return the seats of those who were chosen, and of the others in the lane who make the step hardly longer."""
        rows = sum(one.picture.rows for one in chosen)
        self._steps[lane] += 1
        self._most[lane] = max(self._most[lane], rows)
        seats = {one.seat for one in chosen}
        if self._steps[lane] % _LOOKS and len(seats) < len(seated):
            most, too_many = (1 + _FREE) * step(lane, rows), set[int]()
            rest = (one for one in seated if one.lane == lane and one.seat not in seats)
            for one in sorted(rest, key=lambda one: (-one.party.level, one.picture.turn)):
                if (more := one.picture.rows) in too_many:
                    continue
                if step(lane, rows + more) <= most:
                    rows += more
                    seats.add(one.seat)
                else:
                    too_many.add(more)  # of others with as many it would be asked again, and answered the same
        return seats

    def _joined(
        self,
        lane: LaneKey,
        theirs: Sequence[Seated],
        rows: float,
        step: Callable[[LaneKey, int], float],
        *,
        waiting: int,
        behind: Behind,
    ) -> list[Seated]:
        """Return which of a party's pictures in a lane step now, with as many rows as bring it level or a few more.

        All of its jobs have their turns while one has a deadline, which a forecast promised that has all of them step
        (play.py). What a step of many rows takes is not known before there was one.
        """
        who = theirs[0].party, lane
        turns = self._turns[who]
        self._turns[who] += 1
        if any(one.picture.job.deadline is not None for one in theirs):
            if self._whole[lane] < 0:
                self._whole[lane] = _LOOKS
            return _first(by_turn(theirs), rows)
        jobs: dict[Job, list[Seated]] = {}
        for one in _first(by_work(theirs, oldest=is_oldests(turns)), rows):
            jobs.setdefault(one.picture.job, []).append(one)
        of_jobs = [sum(one.picture.rows for one in job) for job in jobs.values()]
        if self._whole[lane] < 0 or sum(of_jobs) > self._most[lane]:
            self._whole[lane] = _LOOKS * len(jobs)
            number = len(jobs)
        else:
            first, *others = (job.wish.rows_left() for job in jobs)
            alike = [work <= _ALIKE * first for work in others]
            number = joined(of_jobs, functools.partial(step, lane), waiting, behind, alike)
        return list(itertools.chain.from_iterable(list(jobs.values())[:number]))


def _first(seated: list[Seated], rows: float) -> list[Seated]:
    """Return the first pictures with so many rows or a few more."""
    before = itertools.accumulate((one.picture.rows for one in seated), initial=0)
    return [one for one, had in zip(seated, before, strict=False) if had < rows]


def _kept(had: dict[_Who, float], present: dict[_Who, Hashable]) -> dict[_Who, float]:
    """Return what those had who are here; who is new, as much as the least of those of its group, which are values."""
    kept = {who: seconds for who, seconds in had.items() if who in present}
    least: dict[Hashable, float] = {}
    for who, seconds in kept.items():
        group = present[who]
        least[group] = min(seconds, least.get(group, seconds))
    return {who: kept.get(who, least.get(group, 0.0)) for who, group in present.items()}
