"""A lane's seats, and who sits down where."""

from __future__ import annotations

from typing import NamedTuple

from server.job import Picture
from server.wish import LaneKey


class Lane:
    """Holds the seats of one lane. Nobody sits before the lane is ready."""

    def __init__(self, seats: int, *, ready: bool) -> None:
        self.ready = ready  # it is made: its engine and its buffers are there
        self.wanted = False  # by somebody who could not wait for it
        self.tenants: list[Picture | None] = [None] * seats

    @property
    def live(self) -> list[int]:
        return [seat for seat, tenant in enumerate(self.tenants) if tenant]


class Place(NamedTuple):
    """Holds who sits down where, and who had that seat and is to be paused."""

    lane: LaneKey
    seat: int
    picture: Picture
    paused: Picture | None
