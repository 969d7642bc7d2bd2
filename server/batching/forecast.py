"""What the future of the seats and the queue (play.py) says about a job: when it would start and finish, who would be
late for its sake, and who cannot make it any more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.batching.batcher import Batcher
from server.batching.pace import Pace
from server.batching.play import Making, Play
from server.job import Job, Picture


@dataclass(frozen=True)
class Forecast:
    """Says what becomes of a job that joins now; seconds from now."""

    wait: float  # until its first picture has a seat: its own pictures are no queue
    finish: float  # until its last picture's file
    lane_ready: float  # until its lane is ready: a part of the wait
    breaks: tuple[float, ...]  # until the ends of those jobs that would miss their deadlines for its sake


def forecast(
    batcher: Batcher, job: Job, pace: Pace, now: float, margin: float = 1.0, making: Making | None = None
) -> Forecast:
    """Play forward with `job` at its place in the queue, while seats do not drain.

    `now`: monotonic seconds. `margin`: by how much the others' ends may be later than they look.
    """
    waiting, priority = batcher.waiting, job.wish.priority
    joining = [Picture(job, index) for index in range(job.wish.images)]
    before = [picture for picture in waiting if picture.job.wish.priority >= priority]
    after = [picture for picture in waiting if picture.job.wish.priority < priority]
    played = Play(batcher, pace, [*before, *joining, *after], making, newcomer=job, full=True).played

    def late(ends: dict[Job, float]) -> set[Job]:
        return {other for other, end in ends.items() if _misses(other, now + margin * end)} - {job}

    if broken := late(played.finished):
        broken -= late(Play(batcher, pace, waiting, making, full=True).played.finished)
    breaks = tuple(sorted(played.finished[other] for other in broken))
    return Forecast(played.seated[job], played.finished[job], played.ready[job.wish.lane], breaks)


def alone(job: Job, pace: Pace) -> float:
    """Forecast the seconds that a job takes with nobody beside it, all its prompts remembered."""
    wish = job.wish
    steps = wish.rows_left() * wish.images * pace.row(wish.lane)
    return steps + wish.images * pace.decode(wish.size) + pace.file(wish.size, wish.format)


def endangers(batcher: Batcher, picture: Picture, pace: Pace, now: float) -> bool:
    """Return whether somebody who sits, and would meet a deadline, would miss it if `picture` sat down too."""
    seated = {tenant.job for tenant in batcher.seated} - {picture.job}
    if all(job.deadline is None for job in seated):
        return False
    beside = Play(batcher, pace, [picture]).played.finished
    late = [job for job in seated if _misses(job, now + beside.get(job, 0.0))]
    if not late:
        return False
    without = Play(batcher, pace, []).played.finished
    return any(not _misses(job, now + without.get(job, 0.0)) for job in late)


@dataclass(frozen=True)
class Outlook:
    """Says who cannot meet a deadline any more, and else how much time the tightest one has to spare."""

    hopeless: Job | None
    left: float  # seconds that it needs at least
    spare: float


def outlook(batcher: Batcher, pace: Pace, now: float) -> Outlook:
    """Hope for the best: nobody else comes or sits down, who sits leaves when done. Who is late even then is hopeless.

    Who waits is hoped to be alone once it sits. One at a time is given up, for those that remain have more hope: of
    those who sit the latest, then the first who waits. The last job that is here is never: nobody would have what it
    leaves, and only a try can correct the pace.
    """
    waiting = batcher.waiting
    sitting = {picture.job for picture in (*batcher.seated, *batcher.undecoded)}
    jobs = dict.fromkeys((*sitting, *(picture.job for picture in waiting)))
    if all(job.deadline is None for job in jobs):
        return Outlook(None, 0.0, math.inf)
    ends = Play(batcher, pace, []).played.finished
    starts = Play(batcher, pace, waiting).played.seated
    spare: dict[Job, float] = {}
    for job in jobs:
        if job.deadline is not None:
            end = ends[job] if job in sitting else starts[job] + alone(job, pace)
            spare[job] = job.deadline - now - end
    late = [job for job, seconds in spare.items() if seconds < 0] if len(jobs) > 1 else []
    hopeless = min((job for job in late if job in sitting), key=spare.__getitem__, default=late[0] if late else None)
    left = 0.0 if hopeless is None or hopeless.deadline is None else hopeless.deadline - now - spare[hopeless]
    return Outlook(hopeless, left, max(0.0, min(spare.values())))


def _misses(job: Job, end: float) -> bool:
    return job.deadline is not None and end > job.deadline
