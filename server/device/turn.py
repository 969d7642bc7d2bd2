"""One turn of the device: drop, make, seat, step, decode.

Who has gone leaves, and so does who cannot meet a deadline any more; a lane that somebody waits for is begun, who waits
sits down, one lane steps, finished pictures are decoded. Everything that a backend does is begun here, one thing at a
time. On a CPU what was begun is done, but for a lane (lanes.py); on a GPU a step is under way when the next one is
prepared, and a picture is decoded beside the steps and fetched when it is ready. No thread is needed: whoever takes
turns is the device thread.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from engines.errors import DeviceError, OutOfMemory
from engines.model import Model
from pipeline.errors import InvalidRequest, LatentdError
from server.batching.lane import Place
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.fetching import Fetching
from server.device.jobs import Jobs
from server.device.lanes import Lanes, refusal
from server.device.ledger import Ledger
from server.device.seating import Seating
from server.device.stepping import Stepping
from server.errors import Cancelled, PictureFailed, TooLate
from server.events import Started
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.pace import Pace
from server.wish import LaneKey, Wish

log = logging.getLogger("latentd.device")


class Turn:
    """Takes turns: the device thread calls `take` again and again. Each part of a turn can also be called by itself."""

    # Of the last step's time, how long the next one may wait for prompts, and how long for pictures; one of each is
    # done anyhow. After a step the encoder and the decoder begin with cold caches: of the embedded model a prompt takes
    # 2.2 ms by itself and 1.0 behind another (Intel Xeon). And who has no seat yet shares no step.
    between = 0.25

    def __init__(
        self,
        model: Model,
        *,
        jobs: Jobs,
        lanes: Lanes,
        pace: Pace,
        decoding: Decoding,
        delivery: Delivery,
        metrics: Metrics,
    ) -> None:
        self._jobs, self._lanes, self._pace, self._metrics = jobs, lanes, pace, metrics
        self._decoding, self._delivery = decoding, delivery
        self._ledger = Ledger(metrics, pace)
        self._fetching = Fetching(model.loras, jobs.wake)
        self._seating = Seating(model, self._fetching)
        self._stepping = Stepping(jobs, lanes, self._ledger, decoding, delivery)
        self._looked = 0  # Batcher.changes when somebody was sought who may sit down
        self._still: tuple[int, int] | None = None  # rings and moves when there was nothing to do but to step
        self.pulse = 0  # seatings, steps and pictures so far

    def take(self) -> None:
        """Take one turn: drop, make, seat, step, decode; while it is calm step and decode alone.

        Errors: DeviceError, and whatever a step fails with: nothing on the device can be relied on then.
        """
        if not self.calm:
            self.settle()
            rings = self._jobs.changed.rings  # what comes while it looks is looked at in the next turn
            self.drop()
            self.make()
            self.seat()
            still = self._lanes.free and self._jobs.settled
            self._still = (rings, self._jobs.batcher.moves) if still else None
        self.go_on()

    def settle(self) -> None:
        """Tell what is not told yet of the steps so far: who looks at them, or at the device's rest, finds all."""
        self._ledger.enter()
        self._stepping.forget()

    def go_on(self) -> None:
        """Take the rest of a turn, which is all of it while it is calm. Errors: those of `take`."""
        self.step()
        self.decode()

    @property
    def calm(self) -> bool:
        """Return whether somebody sits and nobody is to be dropped, made a lane for or seated. No lock: see Bell."""
        jobs = self._jobs
        return self._still == (jobs.changed.rings, jobs.batcher.moves) and time.monotonic() < jobs.quiet_until

    def unencoded(self, wish: Wish) -> int:
        """See Seating.unencoded."""
        return self._seating.unencoded(wish)

    @property
    def due(self) -> bool:
        """Return whether there is anything to do now. Called with the jobs' lock held.

        A picture that may not be decoded yet, a lane that may not be made yet, or one who waits for a LoRA does not
        count.
        """
        if not (self._jobs.batcher.idle or self.fetches) or self._decoding.may_begin:
            return True
        return self._lanes.over or (self._lanes.free and self._jobs.batcher.unmade is not None)

    @property
    def fetches(self) -> bool:
        """Return whether those who could sit wait for a LoRA that is being read, and nobody sits. Called with the lock.

        When it has been read the thread is woken, as for a picture that comes.
        """
        batcher, fetching = self._jobs.batcher, self._fetching
        return fetching.missed and fetching.at_work and self._looked == batcher.changes and not batcher.seated

    def drop(self) -> None:
        """Take jobs that are cancelled, expired or hopeless out of their seats and the queue."""
        now = time.monotonic()
        if dismissed := self._jobs.dismissed():
            self._leave(dismissed)
        gone = self._jobs.gone(now)
        if gone:
            self._leave(gone)
        for job in gone:
            self._metrics.cancelled(_where(job))
            error = Cancelled("the client went away") if job.cancelled else TooLate("the deadline passed")
            self._delivery.end(job, error)
        while (hopeless := self._jobs.hopeless(now)) is not None:
            job, seconds = hopeless
            self._metrics.given_up(_where(job))
            due = (job.deadline or now) - now
            sentence = f"the deadline, in {due:.2f} s, cannot be met any more: {seconds:.2f} s are left to do"
            self._end([job], TooLate(sentence))

    def make(self) -> None:
        """Begin the lane that the first in the queue waits for; from its end on pictures are seated in it.

        All jobs that waited for a lane that cannot be made fail with the reason; the next one that asks for it has it
        tried again.
        """
        wanted = self._jobs.unmade()
        if wanted is not None and self._lanes.free:
            self._lanes.begin(wanted)
        if (ended := self._lanes.end()) is None:
            return
        lane, error = ended
        if isinstance(error, DeviceError):
            raise error
        waiting = self._jobs.lane_ended(lane, ready=error is None)
        if error:
            self._end(waiting, refusal(lane, error, [job.id for job in waiting]))

    def seat(self) -> None:
        """Seat pictures that wait, in the seats of who is paused for them where none is free.

        When so many prompts are encoded that it took a part of a step the others step first.
        """
        until, encoded = time.monotonic() + self.between * self._stepping.took, False
        while not (encoded and time.monotonic() >= until) and (place := self._next_place()) is not None:
            lane, seat, picture, paused = place
            if paused is not None:
                with self._contained(paused, "paused", lambda picture, failure: self._end([picture.job], failure)):
                    self._seating.pause(self._lanes[lane], seat, paused)
            with self._contained(picture, "begun", lambda picture, failure: self._end([picture.job], failure)):
                encoded |= self._sit(lane, seat, picture)

    def step(self) -> None:
        """Run one evaluation of those whose turn it is. Errors: those of Stepping.step."""
        self.pulse += self._stepping.step()

    def decode(self) -> None:
        """Begin to decode finished pictures whose clients are still there, and deliver those that are decoded.

        One, and more while that takes no larger part of a step.
        """
        if not (self._decoding.may_begin or self._decoding.at_work):
            return
        if self._decoding.may_begin:
            self.drop()  # the step took a while
        until, begun = time.monotonic() + self.between * self._stepping.took, False
        while self._decoding.may_begin and not (begun and time.monotonic() >= until):
            picture, latents = self._decoding.next()
            self._jobs.decoding(picture)
            if not (picture.job.over or picture.job.cancelled):  # whom `drop` ends
                begun = True
                with self._contained(picture, "decoded", self._delivery.settle):
                    self._decoding.begin(picture, latents)
            self.pulse += self._decoding.deliver()
        self.pulse += self._decoding.deliver()

    def _next_place(self) -> Place | None:
        self._looked = self._jobs.batcher.changes
        self._fetching.look()
        return self._jobs.seat_next(time.monotonic(), self._fetching.has)

    def _sit(self, lane: LaneKey, seat: int, picture: Picture) -> bool:
        """Fill a seat and post to the client that its picture has started; returns whether a prompt was encoded."""
        job, timings = picture.job, picture.job.timings
        start, resumed = time.monotonic(), picture.state is not None
        first, timings.seated = not timings.seated, timings.seated or start
        encoded = self._seating.sit(self._lanes[lane], seat, picture)
        now = time.monotonic()
        if encoded:
            self._pace.encoded(encoded, now - start)
        if first:
            timings.encoded = now if encoded else start
        self.pulse += 1
        if not resumed:
            self._metrics.queue_seconds.observe(start - job.arrived)
            job.mailbox.post(Started(picture.index))
        return encoded > 0

    @contextlib.contextmanager
    def _contained(
        self, picture: Picture, verb: str, fail: Callable[[Picture, PictureFailed], object]
    ) -> Iterator[None]:
        """Contain an error of one picture: it alone fails, by `fail`, and the others go on. Errors: DeviceError."""
        extra = {"request": picture.job.id}
        try:
            yield
        except DeviceError:
            raise
        except (OutOfMemory, InvalidRequest) as error:  # the device is intact; a LoRA may be another file by now
            log.warning("%s", error, extra=extra)
            self._end([picture.job], error)
        except Exception:
            failure = PictureFailed(f"image {picture.index} cannot be {verb}")
            log.exception("%s", failure, extra=extra)
            fail(picture, failure)

    def _end(self, jobs: list[Job], error: LatentdError) -> None:
        """End these jobs with an error, their seats and places given up; the others go on."""
        self._leave(jobs)
        for job in jobs:
            self._delivery.end(job, error)

    def _leave(self, jobs: list[Job]) -> None:
        self.settle()
        self._decoding.leave(jobs)
        for lane, seat in self._jobs.leave(jobs):
            if lane in self._lanes:
                self._lanes[lane].leave(seat)


def _where(job: Job) -> str:
    """Name, for the metrics, how far a job has come."""
    return "seat" if job.timings.seats else "queue"
