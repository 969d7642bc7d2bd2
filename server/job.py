"""A job: one validated request inside the server, and how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.backend import Pending
from engines.seat import Sitting
from pipeline.arrays import F32, Pixels
from server.caller import LOCAL
from server.errors import PictureFailed
from server.events import Timings
from server.mailbox import Mailbox
from server.wish import Wish


def _nobody() -> None:
    """Wake nobody."""


@dataclass(eq=False)
class Job:
    """Holds a wish on its way. The device thread and its pool write it; `cancelled` may be set by any thread."""

    id: str
    wish: Wish
    mailbox: Mailbox
    arrived: float  # monotonic seconds
    deadline: float | None = None  # monotonic seconds
    caller: str = LOCAL  # whose it is (server/caller.py), or whose key it came with (server/access/key.py)
    weight: float = 1.0  # of its caller, beside others of its level (server/batching/share.py)
    model: str = ""  # the id of the one that draws it
    unencoded: int = 0  # chunks of its prompts that nobody remembered when it came
    expected: float | None = None  # seconds from its arrival to its end, as forecast when it was admitted
    cancelled: bool = False
    wake: Callable[[], object] = field(default=_nobody, repr=False)  # wakes the device thread: see cancel
    left: int = field(init=False)  # pictures neither delivered nor failed
    timings: Timings = field(init=False)
    failures: list[PictureFailed] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)  # pictures that may be kept, until all are there
    previewed: bool = False
    over: bool = False  # Done or Failed has been posted; nobody reads what comes after it
    # Guards what the device thread and the pool's threads both write: the ends of pictures, previews, timings.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.left = self.wish.images
        self.timings = Timings(self.arrived, judged=None if self.wish.keep is None else 0.0)

    def cancel(self) -> None:
        """Cancel the job: it leaves after the step that is under way, at once where none is."""
        self.cancelled = True
        self.wake()

    def end(self) -> None:
        """Note that its end is posted. What has drawn it is not held any more, however long its client reads."""
        self.over, self.wake = True, _nobody

    def expired(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now


@dataclass(eq=False)
class Picture:
    """Holds one picture of a job: it waits for a seat, and then sits in it."""

    job: Job
    index: int
    arrival: int = 0  # its number in the order of arrival: a paused picture keeps its place
    reached: int = 0  # evaluations done
    ran: int = 0  # of those, since it sat down
    pauses: int = 0  # so far
    came: int = 0  # the turn of the device at which it arrived
    turn: int = 0  # and at which it stepped last
    stepped: float = 0.0  # seconds of the steps that it had a part in
    # From its first seat to its last step what it brought there; while it is paused, S as well (Stepper.pause).
    sitting: Sitting | None = field(default=None, repr=False)
    state: Pending[F32] | None = field(default=None, repr=False)
    start: int = 0  # and the evaluation that comes next
    # Monotonic seconds: when its decoding began, when the device could do something else again, when it was decoded.
    decoding: float = 0.0
    released: float = 0.0
    decoded: float = 0.0
    previews_under_way: int = 0
    previewed: int = 0  # the step of the last preview that was posted
    settled: bool = False  # delivered or failed

    @property
    def rows(self) -> int:
        """Return how many UNet rows the coming evaluation takes."""
        return self.job.wish.rows(self.reached)

    @property
    def evaluations_left(self) -> int:
        return self.job.wish.table.evaluations - self.reached


class Judged(NamedTuple):
    """Holds a decoded picture and how near the judge finds it to the prompt."""

    score: float
    picture: Picture
    pixels: Pixels
