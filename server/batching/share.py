"""The callers' shares of the device, in virtual time: which seats step next.

Start-time fair queueing (Goyal, Vin, Cheng 1996), of row evaluations instead of packets. A party is what one caller has
at one level of priority; whoever has had least comes first. One that begins to sit starts level with the least of the
others, so being away saves up nothing, and a caller alone gets everything. A caller of weight 2 is charged half of what
it has, and so has twice as much.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from server.job import Picture
from server.wish import LaneKey

_LOOKS = 16  # steps, of which nobody rides in one: what a step without riders takes is measured anew
_LEAST = 1e-9  # seconds of a row: else nobody would ever have had anything
_FREE = 0.05  # of a step: who makes it longer by less than this rides for nothing

_Who = TypeVar("_Who", bound=Hashable)


class Party(NamedTuple):
    """Names what shares are between."""

    level: int  # of priority
    caller: str


class Seated(NamedTuple):
    """Holds a picture where it sits, and whose it is."""

    lane: LaneKey
    seat: int
    picture: Picture
    party: Party


class Share:
    """Remembers what each party has had in each lane, in seconds of row evaluations: as long as it sits there."""

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}
        self._lanes: dict[tuple[Party, LaneKey], float] = {}
        self._steps = 0

    def next(
        self,
        seated: Sequence[Seated],
        row: Callable[[LaneKey], float],
        step: Callable[[LaneKey, int], float],
    ) -> tuple[LaneKey, list[int]]:
        """Choose a lane and its seats that step now, and charge them; somebody sits.

        Of the highest level the party that has had least steps, and in its lane those who have had no more than it
        will have had: each as many pictures as bring it level, who stepped longest ago first. So a caller with one
        picture and one with eight have a step each of two rows. A party's lanes take turns. Others in the lane ride
        along where that costs nothing. `row`: seconds of a row of a lane; `step`: of a step of so many.
        """
        top = max(party.level for *_, party in seated)
        entitled = [one for one in seated if one.party.level == top]
        costs: dict[Party, float] = defaultdict(float)
        for one in entitled:
            costs[one.party] += one.picture.rows * max(row(one.lane), _LEAST)
        self._had = _kept(self._had, {one.party: one.party.level for one in seated})
        self._lanes = _kept(self._lanes, {(one.party, one.lane): one.party for one in seated})
        turns: dict[Party, float] = {}  # what each has had in the lane that is its next
        for (party, _), had in self._lanes.items():
            turns[party] = min(had, turns.get(party, had))
        first = min(costs, key=lambda party: (self._had[party], costs[party]))
        lane = min((one.lane for one in entitled if one.party == first), key=lambda lane: self._lanes[first, lane])
        price, quantum, rows = max(row(lane), _LEAST), min(costs.values()), 0
        level, slack = self._had[first] + quantum, min(price, quantum) / 2  # seconds are sums, and these are not exact
        chosen: list[int] = []
        rest: list[Seated] = []
        here = {party for party in costs if self._lanes.get((party, lane), math.inf) <= turns[party] + slack}
        for one in sorted((one for one in seated if one.lane == lane), key=lambda one: one.picture.turn):
            party, mine = one.party, one.picture.rows
            if party in here and self._had[party] < level - slack:
                charge = mine * price / one.picture.job.weight
                self._had[party] += charge
                self._lanes[party, lane] += charge
                chosen.append(one.seat)
                rows += mine
            else:
                rest.append(one)
        self._steps += 1
        if self._steps % _LOOKS == 0:
            return lane, sorted(chosen)
        most = (1 + _FREE) * step(lane, rows)
        for one in sorted(rest, key=lambda one: -one.party.level):
            if step(lane, rows + one.picture.rows) <= most:
                rows += one.picture.rows
                chosen.append(one.seat)
        return lane, sorted(chosen)


def _kept(had: dict[_Who, float], present: dict[_Who, Hashable]) -> dict[_Who, float]:
    """Return what those had who are here; who is new, as much as the least of those of its group, which are values."""
    kept = {who: seconds for who, seconds in had.items() if who in present}
    least: dict[Hashable, float] = {}
    for who, seconds in kept.items():
        group = present[who]
        least[group] = min(seconds, least.get(group, seconds))
    return {who: kept.get(who, least.get(group, 0.0)) for who, group in present.items()}
