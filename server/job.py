"""A job: one validated request inside the server, and how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from server.errors import PictureFailed
from server.events import Timings
from server.mailbox import Mailbox
from server.wish import Wish


@dataclass(eq=False)
class Job:
    """A wish on its way. Written by the device thread and its pool; `cancelled` may be set by any thread."""

    id: str
    wish: Wish
    mailbox: Mailbox
    arrived: float  # monotonic seconds
    deadline: float | None = None  # monotonic seconds
    cancelled: bool = False
    wake: Callable[[], object] = field(default=lambda: None, repr=False)  # whoever sleeps while the job waits
    left: int = field(init=False)  # pictures neither delivered nor failed
    timings: Timings = field(default_factory=Timings)
    failures: list[PictureFailed] = field(default_factory=list)
    previewed: bool = False
    over: bool = False  # Done or Failed has been told; nobody reads what comes after it
    # Guards what the device thread and the pool's threads both write: the ends of pictures, previews, decode_ms.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.left = self.wish.images

    def cancel(self) -> None:
        """The job leaves after the step that is under way; at once where none is."""
        self.cancelled = True
        self.wake()

    def expired(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now


@dataclass(eq=False)
class Picture:
    """One picture of a job: what waits for a seat and then has it."""

    job: Job
    index: int
    reached: int = 0  # evaluations done
    seated_at: float = 0.0
    previews_under_way: int = 0
    previewed: int = 0  # the step of the last preview that was told
    settled: bool = False  # delivered or failed

    @property
    def evaluations_left(self) -> int:
        return self.job.wish.table.evaluations - self.reached
