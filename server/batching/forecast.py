"""What the future of the seats and the queue (play.py) says about a job: when it would start and finish, who would be
late for its sake, and who cannot make it any more."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.making import Making
from server.batching.play import Play
from server.job import Job, Picture
from server.pace.pace import Pace
from server.wish import LaneKey


@dataclass(frozen=True)
class Forecast:
    """Says what becomes of a job that joins now; seconds from now."""

    wait: float  # until its first picture has a seat: its own pictures are no queue
    finish: float  # until its last picture's file
    lane_ready: float  # until its lane is ready: a part of the wait
    breaks: tuple[float, ...]  # until the ends of those jobs that would miss their deadlines for its sake


def forecast(
    batcher: Batcher,
    job: Job,
    pace: Pace,
    now: float,
    margin: float = 1.0,
    making: Making | None = None,
    demand: Demand | None = None,
) -> Forecast:
    """Play forward with `job` at its place in the queue, while seats do not drain.

    `now`: monotonic seconds. `margin`: by how much the others' ends may be later than they look. `demand`: what callers
    asked for lately; a job with a deadline leaves them their shares.
    """
    waiting, priority = batcher.waiting, job.wish.priority
    joining, demand = pictures_of(job), None if job.deadline is None else demand
    place = bisect.bisect_right(waiting, -priority, key=lambda picture: -picture.job.wish.priority)
    queue = [*waiting[:place], *joining, *waiting[place:]]
    played = Play(batcher, pace, queue, making, now=now, newcomer=job, full=True, demand=demand).played

    def late(ends: dict[Job, float]) -> set[Job]:
        return {other for other, end in ends.items() if _misses(other, now + margin * end)} - {job}

    if broken := late(played.finished):
        broken -= late(Play(batcher, pace, waiting, making, now=now, full=True, demand=demand).played.finished)
    breaks = tuple(sorted(played.finished[other] for other in broken))
    return Forecast(played.seated[job], played.finished[job], played.ready[job.wish.lane], breaks)


def alone(pictures: Sequence[Picture], pace: Pace) -> float:
    """Forecast the seconds that pictures of a job take with nobody beside them, all prompts remembered."""
    wish = pictures[0].job.wish
    judge = 0.0 if wish.keep is None else pace.judge
    return device_seconds(pictures, pace) + judge + pace.file(wish.size, wish.format)


def device_seconds(pictures: Sequence[Picture], pace: Pace) -> float:
    """Forecast the seconds that the device has to do with pictures of a job, all prompts remembered."""
    wish = pictures[0].job.wish
    steps = sum(wish.rows_left(picture.reached) for picture in pictures) * pace.row(wish.lane)
    return steps + len(pictures) * pace.decode(wish.size)


def remaining(batcher: Batcher, pace: Pace) -> float:
    """Forecast the seconds until all that sits, waits or is to be decoded here is done, with full seats."""
    rows: Counter[LaneKey] = Counter()  # of all evaluations
    wide: Counter[LaneKey] = Counter()  # of the next one
    decodes = 0.0
    for picture in itertools.chain(batcher.seated, batcher.waiting, batcher.undecoded):
        wish = picture.job.wish
        rows[wish.lane] += wish.rows_left(picture.reached)
        wide[wish.lane] += picture.rows
        decodes += pace.decode(wish.size)
    steps = 0.0
    for lane, count in rows.items():
        if width := min(wide[lane], 2 * batcher.seats):
            steps += count * pace.step(lane, width) / width
    return steps + decodes


def pictures_of(job: Job) -> list[Picture]:
    """Return the pictures of a job that joins."""
    return [Picture(job, index) for index in range(job.wish.images)]


def endangers(batcher: Batcher, picture: Picture, pace: Pace, now: float) -> bool:
    """Return whether somebody who sits, and would meet a deadline, would miss it if `picture` sat down too."""
    seated = {tenant.job for tenant in batcher.seated} - {picture.job}
    if all(job.deadline is None for job in seated):
        return False
    beside = Play(batcher, pace, [picture], now=now).played.finished
    late = [job for job in seated if _misses(job, now + beside.get(job, 0.0))]
    if not late:
        return False
    without = Play(batcher, pace, [], now=now).played.finished
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
    ends = Play(batcher, pace, [], now=now, hopeful=True).played.finished
    starts = Play(batcher, pace, waiting, now=now, hopeful=True).played.seated
    left: dict[Job, list[Picture]] = defaultdict(list)
    for picture in waiting:
        left[picture.job].append(picture)
    spare: dict[Job, float] = {}
    for job in jobs:
        if job.deadline is not None:
            end = ends[job] if job in sitting else starts[job] + alone(left[job], pace)
            spare[job] = job.deadline - now - end
    late = [job for job, seconds in spare.items() if seconds < 0] if len(jobs) > 1 else []
    hopeless = min((job for job in late if job in sitting), key=spare.__getitem__, default=late[0] if late else None)
    needs = 0.0 if hopeless is None or hopeless.deadline is None else hopeless.deadline - now - spare[hopeless]
    return Outlook(hopeless, needs, max(0.0, min(spare.values())))


def _misses(job: Job, end: float) -> bool:
    return job.deadline is not None and end > job.deadline
