"""The seats and the queue, played forward: when is whose request finished?

Every live row costs its lane's measured row time at each evaluation (on a CPU a row is a call), and between two steps
the device encodes one new prompt and decodes one finished picture. Where that takes a small part of a step it does more
of both (server/device/turn.py): they are done sooner than played, all in all. Parties of the highest level that sit
share the time by their weights, as server/batching/share.py deals it out step by step; all that a party has advances
together. Seats are given and taken as the batcher does. Nobody sits in a lane before it is made, nor while too many
wait for the decoder. Pictures that are judged are so one after the other, beside the device. While a lane is made the
others' steps are slower; that is left out, as nothing tells by how much. Nobody rises to another level meanwhile.

A full queue may hold thousands of pictures, and the event loop waits for a forecast. So only the first changes of who
sits are played one by one, and what comes after them is reckoned from the queues alone (rest.py).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator

from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.hall import NEARLY, Hall
from server.batching.making import Making, lanes_ready
from server.batching.parties import Away, PlayedLane, PlayedParty, Waiting
from server.batching.rest import Seats
from server.batching.seated import Party
from server.job import Job, Picture
from server.pace.pace import Pace

_CHANGES = 64  # of who sits, that are played one by one: what comes later than that is uncertain anyway


class Play(Hall):
    """Plays forward until `newcomer` and all who have a deadline, or `everybody`, are finished.

    `queue` sits down in its order.

    Seats drain as their pictures finish, so that steps become cheaper. With `full` they do not: every step takes as
    many rows as sit and wait at the beginning, up to full seats, for others will have come by then. So a party that has
    nothing here any more goes on to have its share, or what `demand` says that its caller asks for; and so does who
    asked lately and is away. `hopeful`: who shares the device may have its steps before the others have theirs, and
    what is uncertain comes at once. `now`: monotonic seconds.
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
        demand: Demand | None = None,
        changes: float = _CHANGES,
    ) -> None:
        super().__init__(pace, batcher.seats, newcomer, everybody=everybody)
        self._hopeful = hopeful
        level, seated = batcher.levels(now), batcher.seated

        def alike(picture: Picture) -> tuple[Job, Party, int, bool]:
            new = not (picture.index or picture.reached or picture.pauses)
            return picture.job, Party(level(picture), picture.job.caller), picture.evaluations_left, new

        paused = batcher.paused_count > 0
        groups = [(alike(pictures[0]), len(pictures)) for pictures in _groups(queue, paused=paused)]
        ready = lanes_ready(batcher, (kind[0].wish.lane for kind, _ in groups), making or Making())
        self.played.ready.update(ready)
        for picture in batcher.undecoded:
            self._left += self._of(picture.job).counts
            self._finish(1, picture.job)
        lanes = {key: PlayedLane(len(lane.tenants), pace.row(key), ready[key]) for key, lane in batcher.lanes.items()}
        self._lanes += lanes.values()
        sitting = [alike(tenant) for tenant in seated]
        weights = {party: job.weight for job, party, *_ in (*sitting, *(kind for kind, _ in groups))}
        self._parties.update((party, PlayedParty(weight)) for party, weight in weights.items())
        self._early = 1 if hopeful and len(self._parties) > 1 else 0  # evaluations
        for job, party, evaluations, _ in sitting:
            self._left += self._of(job).counts
            self._sit(lanes[self._costs[job].lane], party, 1, evaluations, job)
        self._idle_turn = 0.0
        for (job, party, evaluations, new), number in groups:
            costs, encode = self._costs.get(job) or self._of(job), job.unencoded * pace.chunk if new else 0.0
            self._left += costs.counts * number
            lanes[costs.lane].wait(party, (number, evaluations, encode, job))
        if full:
            self._charge()
            self._away = Away(weights, () if demand is None else demand.shares(now), known=demand is not None)
            for party in self._live:
                self._away.comes(party)
            alone = newcomer is not None and not self._costs.keys() - {newcomer}
            turns = sum(seats.cost for seats in self._parties.values())
            self._idle_turn = 0.0 if alone else turns  # when nobody of those here sits any more
        # Those who sit are played to their ends, whatever comes behind them.
        self._run(changes + 2 * len(seated) if full or hopeful else math.inf)

    def _run(self, changes: float) -> None:
        while self._left:
            if changes <= 0:
                return self._assume() if self._hopeful else self._reckon()
            changes -= 1
            steps = self._seat()
            top = max((party.level for party in self._live), default=0)
            busy = [seats for party, seats in self._live.items() if party.level == top]
            coming = [lane.ready for lane in self._lanes if lane.waiting and lane.ready > self._now]
            if busy:
                # A turn is an evaluation of all that one of them has, and as much by its weight of what each other has.
                least = min(seats.charged for seats in busy)
                turn = least * self._away.sharing(top, sum(seats.weight for seats in busy))
                parts = [(seats, least / seats.charged if least else 1.0) for seats in busy]
                steps = min(steps, *((seats.live[0][0] - seats.at) / part for seats, part in parts))
                if coming and turn:
                    steps = min(steps, max(1, (min(coming) - self._now) / turn))
                self._step(parts, max(0, math.ceil(steps - NEARLY)), turn)
            elif self._backlog:
                self._decode(1, self._idle_turn)
            else:
                self._now = min(coming)

    def _assume(self) -> None:
        """Assume the best of all that was not played: it comes at once."""
        for job, costs in self._costs.items():
            self.played.seated.setdefault(job, self._now)
            if costs.counts:
                self.played.finished[job] = max(self.played.finished.get(job, 0.0), self._now)

    def _reckon(self) -> None:
        """Reckon what was not played: each party goes on as it does now, and higher levels come first."""
        while self._backlog:
            self._decode(self._backlog[0][0], 0.0)
        while self._seat() < math.inf:
            pass
        waiting = {party for lane in self._lanes for party in lane.waiting}
        levels: dict[int, list[Party]] = defaultdict(list)
        for party in self._parties:
            if party in waiting or party in self._live:
                levels[party.level].append(party)
        for level, parties in sorted(levels.items(), reverse=True):
            sharing = self._away.sharing(level, sum(self._parties[party].weight for party in parties))
            turn = sharing * min(self._parties[party].charged for party in parties)
            self._now = max(self._now, *(self._go_on(lane, parties, sharing, turn) for lane in self._lanes))

    def _go_on(self, lane: PlayedLane, parties: list[Party], sharing: float, turn: float) -> float:
        """Reckon what the parties of a level have in a lane; returns when the last of it is done."""
        entries: dict[Party, list[Waiting]] = {}
        for party in parties:
            mine = self._parties[party]
            here = sorted((end, order, number, job) for end, order, number, of, job in mine.live if of is lane)
            entries[party] = [(number, end - mine.at, 0.0, job) for end, _, number, job in here]
            entries[party] += lane.waiting.get(party, ())
            if not entries[party]:
                del entries[party]
        total, begin = lane.free + lane.seats.total(), max(self._now, lane.ready)
        seats: dict[Party, Seats] = {}
        for party in entries:
            number = lane.seats[party] or max(1, total // len(entries))
            evaluation = sharing * self._parties[party].charged
            seats[party] = Seats(number, begin, evaluation, turn * number, number * len(entries))
        free, done = total - sum(map(len, seats.values())), self._now
        # Who needs its seats no more leaves them to those who have fewest, and they are as many as the lane has.
        work = {party: sum([entry[0] * entry[1] for entry in entries[party]]) / len(seats[party]) for party in seats}
        for party in sorted(seats, key=work.__getitem__):
            theirs = seats.pop(party)
            done = max(done, *(self._reckoned(theirs, *entry) for entry in entries[party]))
            free += len(theirs)
            for when in theirs.free[: max(0, free)] if seats else ():
                min(seats.values(), key=len).add(when)
                free -= 1
        return done

    def _reckoned(self, seats: Seats, pictures: int, evaluations: float, encode: float, job: Job) -> float:
        costs, played = self._costs[job], self.played
        seated, done = seats.take(pictures, evaluations, costs.decode, encode)
        played.seated.setdefault(job, seated)
        if costs.counts:
            played.finished[job] = max(played.finished.get(job, 0.0), done + costs.judge + costs.file)
        return done


def _groups(queue: Iterable[Picture], *, paused: bool) -> Iterator[list[Picture]]:
    """Group pictures that stand together and take the same: those of a job, but who brings its prompt or has begun.

    `paused`: some have begun.
    """
    for _, group in itertools.groupby(queue, key=operator.attrgetter("job")):
        pictures = list(group)
        begun = paused and any(picture.reached or picture.pauses for picture in pictures)
        first = len(pictures) if begun else int(pictures[0].index == 0)
        yield from ([picture] for picture in pictures[:first])
        if pictures[first:]:
            yield pictures[first:]
