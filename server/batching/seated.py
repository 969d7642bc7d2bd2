"""Who sits where, and whose it is."""

from __future__ import annotations

from typing import NamedTuple

from server.job import Picture
from server.wish import LaneKey


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
