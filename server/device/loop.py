"""The one thread that owns the device, from its start to its end: it takes turns (turn.py) while there is work.

Longer than 300 lines: whoever submits, whoever stops and the thread itself share one lock and its flags.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from engines.model import Model
from engines.preview import Preview
from pipeline.errors import LatentdError
from server.batching.admission import Admission, Reading
from server.batching.batcher import Batcher
from server.batching.forecast import Forecast, device_seconds, pictures_of, remaining
from server.batching.play import Play
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.floor import Floor
from server.device.jobs import Jobs
from server.device.lanes import Lanes
from server.device.turn import Turn
from server.errors import Draining, NotMade, NotServing
from server.job import Job
from server.metrics import Metrics
from server.pace.pace import Pace
from server.wish import LaneKey, Size

log = logging.getLogger("latentd.device")

_POLL = 0.001  # seconds between looks at a decode while nothing else is to be done


class Device:
    """Owns the model's engines from `start` to `stop`. `died` is called once, from its thread, if the device fails.

    Another one, with another model, may share the hardware with it for a while (floor.py).
    """

    def __init__(
        self,
        model: Model,
        *,
        sizes: list[Size],
        seats: int,
        steps: int = 150,
        chunks: int = 1,
        admission: Admission,
        metrics: Metrics,
        workers: int,
        died: Callable[[], object],
    ) -> None:
        """Make the lanes of prompts of up to `chunks` chunks, and the parts that the device thread works with.

        `steps`: of the longest job that will be submitted.
        `workers`: threads that write picture files. Errors: those of Backend.stepper.
        """
        self.model = model
        self.seats = seats
        self.sizes = sizes
        self.metrics = metrics
        self.emptied: Callable[[], object] = lambda: None  # called by any thread when the last job has ended
        lanes = [LaneKey(width, height, 1 + more, model.rank) for more in range(chunks) for width, height in sizes]
        self._batcher = Batcher(lanes, seats)
        self._admission = admission
        self._died = died
        self._lanes = Lanes(model, seats, steps, metrics, self._wake)
        self._pace = Pace({lane: self._lanes.warm(lane) for lane in lanes})
        self._jobs = Jobs(self._batcher, self._pace, metrics, model.spec.defaults.steps, lambda: self.emptied())
        self._changed = self._jobs.changed  # guards the flags below too
        self.floor = Floor(self._changed, self._remaining)
        self._stopping = False
        self._failed = False
        self._lost = False  # given up: nobody waits for the thread any more
        self._over = threading.Event()  # the thread has done its last, or is lost
        self._cause: Exception | None = None
        self.preview = Preview(model.backend)
        self._delivery = Delivery(workers, self.preview, self._pace, metrics, self._jobs.forget, model.judge)
        self._decoding = Decoding(model.backend, self._delivery, self._pace, metrics)
        self._turn = Turn(
            model,
            jobs=self._jobs,
            lanes=self._lanes,
            pace=self._pace,
            decoding=self._decoding,
            delivery=self._delivery,
            metrics=metrics,
        )
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def measure(self, beside: Device) -> None:
        """Measure each lane's pace, while the device `beside` rests: it may have disturbed what was. Before `start`."""
        for lane in self._batcher.lanes:
            with beside.floor.at_rest():
                self._pace.measured(lane, self._lanes.measure(lane))

    @property
    def jobs(self) -> int:
        """Count the jobs that have not ended."""
        return len(self._jobs)

    def _remaining(self) -> float:
        """Forecast the seconds until all that is here is done. Called with the lock held."""
        return self._jobs.margin.value(time.monotonic()) * remaining(self._batcher, self._pace)

    def ahead(self, job: Job) -> int | None:
        """Count the pictures that will be seated before a job's first; None where none of it waits any more.

        Those whose client has gone are not counted, though they are there until the step under way is over.
        """
        with self._changed:
            waiting = [picture for picture in self._batcher.waiting if not picture.job.cancelled]
        return next((place for place, picture in enumerate(waiting) if picture.job is job), None)

    def submit(self, job: Job) -> int:
        """Admit a job; returns how many pictures wait before it. Errors: Busy, TooLate, NotServing."""
        before = self.floor.waits()
        with self._changed:
            expected = self._admit(job, before)
            # The making of a lane tells no pace, nor does a judge who has not seen a picture yet.
            if self._batcher.lanes[job.wish.lane].ready and (job.wish.keep is None or self._pace.judge):
                job.expected = time.monotonic() - job.arrived + before + expected.finish
            ahead = self._jobs.add(job)
            self.floor.take()
            job.wake = self._wake
            self._changed.notify()
        return ahead

    def queue_wait(self) -> float:
        """Forecast the seconds until every request that waits now has a seat; 0 where none waits."""
        with self._changed:
            if not (waiting := self._batcher.waiting):
                return 0.0
            now = time.monotonic()
            played = Play(self._batcher, self._pace, waiting, self._lanes.making(now), now=now, everybody=True).played
        return max(played.seated.get(picture.job, 0.0) for picture in waiting)

    def foresee(self, job: Job, reading: Reading, *, first: bool) -> None:
        """Refuse a job now that would be refused once its pictures are read. Errors: those of `submit`.

        `first`: nobody's are being read. On an idle device it is tried then, as a forecast may be wrong.
        """
        before = self.floor.waits()
        with self._changed:
            if not (first and self._batcher.empty and not before):
                self._admit(job, before, reading)

    def _admit(self, job: Job, before: float, reading: Reading | None = None) -> Forecast:
        """Open the job's lane where there is none, and return its forecast if it may join, `before` seconds from now.

        Errors: NotServing; those of Admission.check.
        """
        if self._failed or self._stopping:
            raise NotServing("the device has failed; the server is about to restart") if self._failed else Draining()
        key, now = job.wish.lane, time.monotonic()
        if self._batcher.open(key):  # made when the device thread comes to it
            self._pace.open(key)
        if not (lane := self._batcher.lanes[key]).ready:
            self._lanes.expect(key)
        job.unencoded = self._turn.unencoded(job.wish)
        making, margin, jobs = self._lanes.making(now), self._jobs.margin.value(now), self._jobs
        if reading is None:
            # Whoever cannot be let in, as his deadline is before that, has asked for no more than until then.
            seconds = device_seconds(pictures_of(job), self._pace)
            seconds = seconds if job.deadline is None else min(seconds, job.deadline - now)
            jobs.demand.note(job.caller, job.wish.priority, seconds, now, job.weight)
        try:
            return self._admission.check(
                job, self._batcher, self._pace, now, margin, making, jobs.demand, reading, jobs.alike, before
            )
        except NotMade:
            lane.wanted = True
            self._changed.notify()
            raise

    def judging(self, pictures: int) -> contextlib.AbstractContextManager[None]:
        """See Delivery.judging."""
        return self._delivery.judging(pictures)

    @property
    def makes_lane(self) -> bool:
        """Return whether a lane is being made in a thread that `stop` does not wait for.

        That thread may be inside a compiler for minutes.
        """
        return self._lanes.at_work

    @property
    def owes(self) -> bool:
        """Return whether there is a job that only the device thread can go on with.

        While a lane is being made, or a LoRA read for all who could sit, there is none: that takes as long as it takes,
        and the device is not stuck. Nor is it while it stands for another's sake.
        """
        with self._changed:
            fetches = self._turn.fetches
        return bool(self._jobs) and self._lanes.free and not self.floor.stands and not fetches

    @property
    def full_step(self) -> float:
        """Forecast a step with every seat guided, in the slowest lane; seconds."""
        return self._pace.full_step(self.seats)

    @property
    def pulse(self) -> int:
        """Count the seatings, steps and pictures so far."""
        return self._turn.pulse

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

    def dismiss_late(self, seconds: float) -> int:
        """Tell those who will not be finished in `seconds`, at once; returns how many. Called by any other thread."""
        late = self._jobs.dismiss(seconds - self.floor.waits(), self._lanes.making(time.monotonic()))
        for job, needs in late.items():
            sentence = f"the server stops in {seconds:g} s, and the request would take {needs:.1f} s; ask another one"
            self._delivery.end(job, NotServing(sentence))
        return len(late)

    def dismiss(self, why: str) -> None:
        """End every job that is still here, saying `why`: at once, though the thread may be within a long step.

        The thread ends after that step. Called by any other thread.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
            remaining = list(self._jobs)
        for job in remaining:
            self._delivery.end(job, NotServing(why))

    def give_up(self, why: str) -> None:
        """Give up a thread that does not come back: its jobs fail, nobody waits for it. Called by any other thread."""
        log.critical("the device is stuck: %s", why)
        with self._changed:
            self._failed = self._stopping = self._lost = True
            left = list(self._jobs)
        for job in left:
            self._delivery.end(job, NotServing(f"the device is stuck: {why}; the server is about to restart"))
        self._over.set()
        self.floor.end()
        self._died()

    def _run(self) -> None:
        try:
            self._live()
        finally:
            self._over.set()
            self.floor.end()

    def _live(self) -> None:
        try:
            while True:
                if self._turn.calm and not (self._stopping or self.floor.stands):
                    self._turn.go_on()
                    continue
                self._turn.settle()  # it may rest, or stand for another's sake
                if not self._wait():
                    break
                if self.floor.yields:
                    self._turn.drop()  # whose client left, or whose deadline passed, hears of it all the same
                else:
                    self._turn.take()
            error = NotServing("the server stopped before the request was done")
        except Exception as unexpected:
            known = isinstance(unexpected, LatentdError)  # a sentence; CUDA's errors show elsewhere than they arise
            sentence = f"the device failed: {unexpected}" if known else "the device failed"
            log.critical("%s", sentence, exc_info=not known)
            error = NotServing(sentence)
            self._failed = True
            self._cause = unexpected  # and all that its frames hold: see Fetched.arrays
            self._turn.settle()
        with self._changed:
            self._stopping = True
        self._delivery.close()  # what has been decoded is still delivered
        with self._changed:
            left = list(self._jobs)
            self._jobs.leave(left)
        for job in left:
            self._delivery.end(job, error)
        if self._failed:
            self._died()

    def _wake(self) -> None:
        self._jobs.wake()

    def _wait(self) -> bool:
        """Sleep until there may be work; False when the thread is to end."""
        with self._changed:
            while not self._stopping and self.floor.pause():
                self._changed.wait()
            if not self._stopping and (self.floor.yields or not self._turn.due):
                self.floor.leave()
                rests = self._batcher.empty and not (self.floor.yields or self._decoding.at_work)
                begun = time.monotonic()
                self._changed.wait(self._patience())
                if rests:
                    self._pace.rested(time.monotonic() - begun)
            self.floor.take()
            return not self._stopping

    def _patience(self) -> float | None:
        """Return the seconds to sleep at most; None: until somebody wakes the thread. Called with the lock held.

        Nobody wakes it when a picture is decoded or a deadline passes, so it wakes by itself then.
        """
        now, until = time.monotonic(), [_POLL] if self._decoding.at_work else []
        until += [job.deadline - now for job in self._jobs if job.deadline is not None]
        until += [0.0 for job in self._jobs if job.cancelled]
        # gRPC's deadlines go up to eleven thousand years, a condition waits for 292 at most.
        return min(max(0.0, min(until)), threading.TIMEOUT_MAX) if until else None
