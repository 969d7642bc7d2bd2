"""The one thread that owns the device: seats, steps, decodes.

Everything that a backend does is begun here, one thing at a time; a turn of the loop is: who has gone leaves,
a lane that somebody waits for is begun, who waits sits down, one lane steps, one finished picture is decoded. On a CPU
what was begun is done, but for a lane (lanes.py); on a GPU a step is under way when the next one is prepared,
and a picture is decoded beside the steps and fetched when it is ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from engines.errors import DeviceError, OutOfMemory
from engines.model import Model
from engines.preview import Preview
from pipeline.conditions.text import context_of
from pipeline.errors import LatentdError
from pipeline.noise import standard_normal
from server.batching.admission import Admission
from server.batching.batcher import Batcher
from server.batching.pace import Pace
from server.device.contexts import Contexts
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.lanes import Lanes, refusal
from server.errors import Cancelled, NotMade, NotServing, PictureFailed, TooLate
from server.events import Started, Step
from server.job import Job, Picture
from server.metrics import Metrics
from server.wish import LaneKey, Size

log = logging.getLogger("latentd.device")

_PREVIEWS = 3  # of one picture in the pool at once: steps that outrun the pool lose previews, not memory
_POLL = 0.001  # seconds between looks at a decode while nothing else is to be done


class Device:
    """Owns the model's engines from `start` to `stop`. `died` is called once, from its thread, if the device fails."""

    def __init__(
        self,
        model: Model,
        sizes: list[Size],
        seats: int,
        admission: Admission,
        metrics: Metrics,
        workers: int,
        died: Callable[[], object],
        steps: int = 150,
        chunks: int = 1,
    ) -> None:
        """`steps`: of the longest job that will be submitted. Lanes of prompts of up to `chunks` chunks are made now.

        Errors: those of Backend.stepper.
        """
        self.model = model
        self.seats = seats
        self.sizes = sizes
        self._changed = threading.Condition()  # guards the batcher, the jobs and the flags below
        lanes = [LaneKey(width, height, 1 + more) for more in range(chunks) for width, height in sizes]
        self._batcher = Batcher(lanes, seats)
        self._admission = admission
        self._metrics = metrics
        self._died = died
        self._lanes = Lanes(model, seats, steps, metrics, self._wake)
        self._pace = Pace({lane: self._lanes.warm(lane) for lane in lanes})
        self._contexts = Contexts(model.backend)
        self._jobs: set[Job] = set()  # admitted and not yet told Done or Failed
        self._stopping = False
        self._failed = False
        self._lost = False  # given up: nobody waits for the thread any more
        self._over = threading.Event()  # the thread has done its last, or is lost
        self.pulse = 0  # seatings, steps and pictures so far
        self._cause: Exception | None = None
        self.preview = Preview(model.backend)
        self._delivery = Delivery(workers, self.preview, metrics, self._forget)
        self._decoding = Decoding(model.backend, self._delivery, metrics, self._refuse)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Admit a job; returns how many pictures wait before it. Errors: Busy, TooLate, NotServing."""
        with self._changed:
            if self._failed or self._stopping:
                raise NotServing(
                    "the device has failed; the server is about to restart" if self._failed else "draining"
                )
            self._admit(job)
            ahead = self._batcher.ahead_of(job.wish.priority)
            self._batcher.add(job)
            self._jobs.add(job)
            job.wake = self._wake
            self._count()
            self._changed.notify()
        return ahead

    def _admit(self, job: Job) -> None:
        """Errors: those of Admission.check."""
        key, now = job.wish.lane, time.monotonic()
        if self._batcher.open(key):  # made when the device thread comes to it
            self._pace.open(key)
        if not (lane := self._batcher.lanes[key]).made:
            self._lanes.expect(key)
        rows, making = self._pace.row_seconds, self._lanes.making(now)
        try:
            self._admission.check(job.wish, self._batcher, rows, now, job.deadline, making)
        except NotMade:
            lane.wanted = True
            self._changed.notify()
            raise

    @property
    def makes_lane(self) -> bool:
        """Is a lane being made in a thread that `stop` does not wait for? That may be inside a compiler for minutes."""
        return self._lanes.at_work

    @property
    def owes(self) -> bool:
        """Is there a job that only the device thread can go on with? A lane that is made takes what it takes."""
        return bool(self._jobs) and self._lanes.free

    @property
    def full_step(self) -> float:
        """Forecast of a step with every seat guided, in the slowest lane; seconds."""
        return self._pace.full_step(self.seats)

    @property
    def failed(self) -> bool:
        return self._failed

    def stop(self) -> None:
        """End the thread; jobs that are still here fail. Returns when nothing steps or decodes any more.

        After `give_up` it returns at once, whatever the thread may be in.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._over.wait()
        if not self._lost:
            if self._thread.is_alive():
                self._thread.join()
            self._delivery.close()

    def give_up(self, why: str) -> None:
        """The thread does not come back: its jobs fail, and nobody waits for it. Called by any other thread."""
        log.critical("the device is stuck: %s", why)
        with self._changed:
            self._failed = self._stopping = self._lost = True
            left = list(self._jobs)
        for job in left:
            self._delivery.end(job, NotServing(f"the device is stuck: {why}; the server is about to restart"))
        self._over.set()
        self._died()

    def _run(self) -> None:
        try:
            self._turn()
        finally:
            self._over.set()

    def _turn(self) -> None:
        try:
            while self._wait():
                self._drop()
                self._make()
                self._seat()
                self._step()
                self._decode()
            error = NotServing("the server stopped before the request was done")
        except Exception as unexpected:
            known = isinstance(unexpected, LatentdError)  # a sentence; CUDA's errors show elsewhere than they arise
            log.critical("the device failed%s", f": {unexpected}" if known else "", exc_info=not known)
            self._failed = True
            self._cause = unexpected  # and all that its frames hold: see Fetched.arrays
            error = NotServing(
                f"the device failed: {unexpected}" if isinstance(unexpected, LatentdError) else "the device failed"
            )
        with self._changed:
            self._stopping = True
        self._delivery.close()  # what has been decoded is still delivered
        with self._changed:
            left = list(self._jobs)
            self._batcher.drop(left)
            self._count()
        for job in left:
            self._delivery.end(job, error)
        if self._failed:
            self._died()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _wait(self) -> bool:
        """Sleep until there may be work; False when the thread is to end."""
        with self._changed:
            if not self._stopping and not self._work():
                self._changed.wait(self._patience())
            return not self._stopping

    def _work(self) -> bool:
        """What may not be decoded or made yet is no work; called with the lock held."""
        if not self._batcher.idle or self._decoding.may_begin:
            return True
        return self._lanes.over or (self._lanes.free and self._batcher.unmade is not None)

    def _patience(self) -> float | None:
        """Seconds until what nobody tells: a decoded picture, a deadline that passes; called with the lock held."""
        now, until = time.monotonic(), [_POLL] if self._decoding.at_work else []
        until += [job.deadline - now for job in self._jobs if job.deadline is not None]
        until += [0.0 for job in self._jobs if job.cancelled]
        # gRPC's deadlines go up to eleven thousand years, a condition waits for 292 at most.
        return min(max(0.0, min(until)), threading.TIMEOUT_MAX) if until else None

    def _drop(self) -> None:
        """Cancelled and expired jobs leave their seats and the queue."""
        now = time.monotonic()
        with self._changed:
            gone = [job for job in self._jobs if job.cancelled or job.expired(now)]
        if gone:
            self._leave(gone)
        for job in gone:
            self._metrics.cancelled("seat" if job.timings.seats else "queue")
            error = Cancelled("the client went away") if job.cancelled else TooLate("the deadline passed")
            self._delivery.end(job, error)

    def _leave(self, gone: Iterable[Job]) -> None:
        with self._changed:
            for lane, seat in self._batcher.drop(gone):
                if lane in self._lanes:
                    self._lanes[lane].leave(seat)
            self._count()

    def _forget(self, job: Job) -> None:
        with self._changed:
            self._jobs.discard(job)

    def _count(self) -> None:
        """The gauges follow the batcher; called with the lock held."""
        self._metrics.queue_depth.set(self._batcher.waiting_count)
        self._metrics.rows_live.set(self._batcher.rows_live)

    def _make(self) -> None:
        """The lane that the first in the queue waits for is begun; one that is made may be sat in."""
        with self._changed:
            wanted = self._batcher.unmade
        if wanted is not None and self._lanes.free:
            self._lanes.begin(wanted)
        if (ended := self._lanes.end()) is None:
            return
        lane, error = ended
        if isinstance(error, DeviceError):
            raise error
        with self._changed:  # whoever comes after this has the lane made, or made again
            self._batcher.lanes[lane].made, self._batcher.lanes[lane].wanted = error is None, False
            gone = [job for job in self._jobs if job.wish.lane == lane] if error else []
        if error:
            self._no_lane(gone, lane, error)

    def _refuse(self, job: Job, error: LatentdError) -> None:
        """It leaves, and is told why; the others go on."""
        log.warning("%s", error, extra={"request": job.id})
        self._leave([job])
        self._delivery.end(job, error)

    def _no_lane(self, jobs: list[Job], lane: LaneKey, error: BaseException) -> None:
        """All who waited for a lane are told that it cannot be made; the next who asks for it has it tried again."""
        told = refusal(lane, error, [job.id for job in jobs])
        self._leave(jobs)
        for job in jobs:
            self._delivery.end(job, told)

    def _seat(self) -> None:
        """Who waits takes the free seats. After one prompt is encoded the others step first: it takes a while."""
        encoded = False
        while not encoded:
            with self._changed:
                place = self._batcher.seat_next()
                self._count()
            if place is None:
                return
            lane, seat, picture = place
            try:
                encoded = self._sit(lane, seat, picture)
            except DeviceError:
                raise
            except OutOfMemory as error:  # the device is intact
                self._refuse(picture.job, error)
            except Exception:
                log.exception("image %d cannot be begun", picture.index, extra={"request": picture.job.id})
                self._leave([picture.job])
                self._delivery.end(picture.job, PictureFailed(f"image {picture.index} cannot be begun"))

    def _sit(self, lane: LaneKey, seat: int, picture: Picture) -> bool:
        """Fill a seat; returns whether a prompt had to be encoded."""
        job, wish = picture.job, picture.job.wish
        picture.seated_at = start = time.monotonic()
        contexts, known = self._contexts, self._contexts.computed
        context = context_of(wish.prompt, contexts.of)
        negative = None if wish.negative is None else context_of(wish.negative, contexts.of)
        encoded = contexts.computed > known
        shape = self.model.spec.latent_shape(*wish.size)
        noise = standard_normal(wish.picture_seed(picture.index), shape, draws=1 + wish.table.draws)
        self._lanes[lane].sit(seat, wish.table, noise, context, negative, wish.guidance)
        job.timings.queue_ms = max(job.timings.queue_ms, 1e3 * (start - job.arrived))
        job.timings.encode_ms += 1e3 * (time.monotonic() - start) if encoded else 0.0
        self._metrics.queue_seconds.observe(start - job.arrived)
        job.mailbox.post(Started(picture.index))
        self.pulse += 1
        return encoded

    def _step(self) -> None:
        """One evaluation of the lane whose turn it is."""
        with self._changed:  # a submit may open a lane meanwhile
            key = self._batcher.next_lane()
        if key is None:
            return
        lane, stepper = self._batcher.lanes[key], self._lanes[key]
        seats = lane.live
        tenants = {seat: tenant for seat in seats if (tenant := lane.tenants[seat])}
        wanted = [seat for seat, picture in tenants.items() if _wants_preview(picture)]
        rows = sum(picture.job.wish.rows for picture in tenants.values())
        start = time.monotonic()
        stepper.step(seats, predict=wanted)
        took = time.monotonic() - start
        lane.spent += took
        self._pace.stepped(key, rows, took)
        self._metrics.step_seconds.observe(took)
        self._metrics.steps_total.inc()
        self.pulse += 1
        for seat, picture in tenants.items():
            self._after_step(key, seat, picture, len(seats), preview=seat in wanted)

    def _after_step(self, lane: LaneKey, seat: int, picture: Picture, live: int, *, preview: bool) -> None:
        job, wish, stepper = picture.job, picture.job.wish, self._lanes[lane]
        picture.reached = stepper.reached(seat)
        job.timings.seats.append(live)
        done = wish.table.steps_after(picture.reached)
        if done > wish.table.steps_after(picture.reached - 1):  # a step may take two evaluations
            job.mailbox.post(Step(picture.index, done, wish.steps))
        if preview:
            self._delivery.preview(picture, done, stepper.pending_prediction(seat))
        if stepper.finished(seat):
            latents = stepper.pending_latents(seat)
            stepper.leave(seat)
            with self._changed:
                self._batcher.free(lane, seat)
                self._count()
            job.timings.denoise_ms += 1e3 * (time.monotonic() - picture.seated_at)
            self._decoding.add(picture, latents)

    def _decode(self) -> None:
        """One finished picture is begun, and those that are done are delivered."""
        if self._decoding.may_begin:
            self._drop()  # the step took a while
            self._decoding.begin()
        self.pulse += self._decoding.deliver()


def _wants_preview(picture: Picture) -> bool:
    """Is a preview due after the coming evaluation? Never after the last: the picture itself follows."""
    wish = picture.job.wish
    if not wish.preview_every or picture.previews_under_way >= _PREVIEWS or picture.evaluations_left == 1:
        return False
    done = wish.table.steps_after(picture.reached + 1)
    return done > wish.table.steps_after(picture.reached) and done % wish.preview_every == 0
