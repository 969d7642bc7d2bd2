"""The callers' shares of the device, in virtual time: which seats step next.

Start-time fair queueing (Goyal, Vin, Cheng 1996), of row evaluations instead of packets. A party is what one caller has
at one level of priority; whoever has had least comes first. One that begins to sit starts level with the least of the
others, so being away saves up nothing, and a caller alone gets everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.job import Picture
from server.wish import LaneKey

_FREE = 0.05  # of a step: who makes it longer by less than this rides for nothing


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
    """Remembers what each party has had, in seconds of row evaluations: of those that sit, as `next` last saw them."""

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}

    def next(
        self,
        seated: Sequence[Seated],
        spent: Callable[[LaneKey], float],
        row: Callable[[LaneKey], float],
        step: Callable[[LaneKey, int], float],
    ) -> tuple[LaneKey, list[int]]:
        """Choose a lane and its seats that step now, and charge them; somebody sits.

        Of the highest level the party that has had least steps, and in its lane those who have had no more than it
        will have had: each as many pictures as bring it level, who stepped longest ago first. So a caller with one
        picture and one with eight have a step each of two rows. Others in the lane ride along where that costs nothing.
        `spent`: seconds of steps of a lane; `row`: of one of its rows; `step`: of a step of so many.
        """
        top = max(party.level for *_, party in seated)
        entitled = [one for one in seated if one.party.level == top]
        costs: dict[Party, float] = defaultdict(float)
        for one in entitled:
            costs[one.party] += one.picture.job.wish.rows * row(one.lane)
        self._keep({one.party for one in seated})
        first = min(costs, key=lambda party: (self._had[party], costs[party]))
        lane = min((one.lane for one in entitled if one.party == first), key=spent)
        level = self._had[first] + min(costs.values())
        price, rows = row(lane), 0
        chosen: list[int] = []
        rest: list[Seated] = []
        for one in sorted((one for one in seated if one.lane == lane), key=lambda one: one.picture.turn):
            own = one.picture.job.wish.rows
            # Half a row: seconds are sums, and sums are not exact.
            if one.party.level == top and self._had[one.party] < level - price / 2:
                self._had[one.party] += own * price
                chosen.append(one.seat)
                rows += own
            else:
                rest.append(one)
        most = (1 + _FREE) * step(lane, rows)
        for one in sorted(rest, key=lambda one: -one.party.level):
            if step(lane, rows + one.picture.job.wish.rows) <= most:
                rows += one.picture.job.wish.rows
                chosen.append(one.seat)
        return lane, sorted(chosen)

    def _keep(self, parties: set[Party]) -> None:
        """Forget who does not sit any more, and begin with who does since now."""
        self._had = {party: had for party, had in self._had.items() if party in parties}
        least: dict[int, float] = {}
        for party, had in self._had.items():
            least[party.level] = min(had, least.get(party.level, had))
        for party in parties - self._had.keys():
            self._had[party] = least.get(party.level, 0.0)
