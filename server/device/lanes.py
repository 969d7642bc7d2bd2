"""The lanes' steppers, and how a missing one comes to be while others step.

Making one takes from milliseconds to minutes: an engine is compiled or captured, buffers are laid out. Where the
backend allows it a thread of its own does that, one lane at a time, and the device thread goes on meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from engines.backend import Stepper
from engines.errors import NoEngine, OutOfMemory
from engines.model import Model
from engines.seat import Sitting
from pipeline.conditions.sizes import AS_IT_IS
from pipeline.conditions.text import Encoded
from pipeline.errors import LatentdError
from pipeline.samplers import STATE, Table
from server.batching.making import Making
from server.errors import PictureFailed
from server.metrics import Metrics
from server.wish import LaneKey, engine_of

log = logging.getLogger("latentd.lanes")


class Lanes:
    """Holds the lanes' steppers and makes them. Used by the device thread, and before it starts by its maker."""

    def __init__(self, model: Model, seats: int, steps: int, metrics: Metrics, ended: Callable[[], object]) -> None:
        """Begin without lanes. `seats` of a lane, `steps` of the longest job.

        `ended` is called, by any thread, when the making of a lane is over and `end` says how it went.
        """
        self._model, self._seats, self._steps = model, seats, steps
        self._metrics = metrics
        self._ended = ended
        self._steppers: dict[LaneKey, Stepper] = {}
        self._making: LaneKey | None = None  # begun, and its end not yet taken
        self._end: Stepper | BaseException | None = None
        self._thread: threading.Thread | None = None
        self._begun = 0.0  # when
        self._quickest: float | None = None  # of those that were made so far, in seconds
        self._expected: dict[LaneKey, float] = {}  # seconds that others will take

    def __contains__(self, lane: LaneKey) -> bool:
        return lane in self._steppers

    def __getitem__(self, lane: LaneKey) -> Stepper:
        return self._steppers[lane]

    def warm(self, lane: LaneKey) -> float:
        """Make a lane here and now. Errors: those of Backend.stepper.

        Returns seconds a row, as the backend knows them, or measured on the second of two steps of two rows; the first
        one warms the engine up. A large model on a CPU is SERVING 8 s earlier for what it need not run again.
        """
        self._keep(lane, self._make(lane))
        backend = self._model.backend
        if (known := backend.row_seconds(lane.width, lane.height, lane.chunks, lane.rank)) is not None:
            return known
        return self.measure(lane, 2, decode=lane.chunks == 1)  # a size has one decoder

    def measure(self, lane: LaneKey, steps: int = 1, *, decode: bool = False) -> float:
        """Measure the seconds a row, on the last of so many steps of a lane that nobody sits in.

        `decode`: run the decoder too, so that it is warm.
        """
        stepper, spec = self._steppers[lane], self._model.spec
        shape = spec.latent_shape(lane.width, lane.height)
        unet, zeros = spec.unet, np.zeros((1, *shape), np.float32)
        context = np.zeros((lane.chunks * spec.text.tokens, unet.context_width), np.float32)
        text = Encoded(context, np.zeros(unet.pooled_width, np.float32) if unet.pooled_width else None)
        beside = text.beside | AS_IT_IS.inputs(unet, lane.width, lane.height)
        stepper.sit(0, Sitting(_still(steps), zeros, context, context, guidance=2.0, beside=(beside, beside)))
        took = 0.0
        for _ in range(steps):
            start = time.monotonic()
            stepper.step([0])
            stepper.pending_latents(0).get()
            took = time.monotonic() - start
        if decode:
            self._model.backend.picture(stepper.pending_latents(0)).get()
        stepper.leave(0)
        return took / 2

    def expect(self, lane: LaneKey) -> None:
        """Expect a lane that is not made to take what the quickest one did: others took what is done once, too.

        Called by any thread, one at a time.
        """
        self._expected.setdefault(lane, self._quickest or 0.0)

    def making(self, now: float) -> Making:
        """Return what is known of the lanes that are not ready. Called by any thread."""
        return Making(self._expected, self._making, now - self._begun)

    @property
    def free(self) -> bool:
        """Return whether a lane may be begun: no other is being made."""
        return self._making is None

    @property
    def over(self) -> bool:
        """Return whether the making of a lane is over, so that `end` has something to return."""
        return self._end is not None

    @property
    def at_work(self) -> bool:
        """Return whether the other thread is making a lane, no matter who waits for it."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, lane: LaneKey) -> None:
        """Make a lane, in a thread of its own or, if the backend wants that, in the caller's; `end` tells the rest."""
        assert self.free and lane not in self._steppers
        self._begun, self._making = time.monotonic(), lane
        if not self._model.backend.makes_beside:
            self._run(lane)
            return
        # A daemon: whoever stops the server waits for no compiler.
        self._thread = threading.Thread(target=self._run, args=(lane,), name=f"lane {lane}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this process
            self._thread, self._end = None, error

    def end(self) -> tuple[LaneKey, BaseException | None] | None:
        """Return the lane whose making is over, and its error if it cannot be made; then another may begin.

        A lane without an error is there from now on. None where nothing is over.
        """
        lane, end = self._making, self._end
        if lane is None or end is None:
            return None
        self._making = self._end = None
        if isinstance(end, BaseException):
            self._expected[lane] = 0.0  # the next is let in, to be told what is the matter
            return lane, end
        self._keep(lane, end)
        return lane, None

    def _run(self, lane: LaneKey) -> None:
        try:
            self._end = self._make(lane)
        except BaseException as error:  # whatever it is, jobs wait for an answer
            self._end = error
        self._ended()

    def _make(self, lane: LaneKey) -> Stepper:
        start = time.monotonic()
        backend = self._model.backend
        stepper = backend.stepper(lane.width, lane.height, self._seats, lane.chunks, self._steps, lane.rank)
        took = time.monotonic() - start
        self._quickest = min(took, self._quickest or took)
        log.info("lane=%s made_in_s=%.2f", lane, took)
        return stepper

    def _keep(self, lane: LaneKey, stepper: Stepper) -> None:
        self._steppers[lane] = stepper
        self._metrics.seats_capacity.set(self._seats)  # of one: lanes step by turns
        self._metrics.rows_capacity.set(2 * self._seats)


def refusal(lane: LaneKey, error: BaseException, requests: list[str]) -> LatentdError:
    """Return the error of the requests that wait for a lane that cannot be made; log its cause under their ids."""
    answer: LatentdError
    if isinstance(error, NoEngine | OutOfMemory):  # whoever runs the server, or asks for less, can mend it
        answer = error
        log.warning("%s", error, extra={"request": ",".join(requests)})
    else:
        answer = PictureFailed(f"{engine_of(lane)} cannot be made")
        log.error("%s", answer, exc_info=error, extra={"request": ",".join(requests)})
    return answer


def _still(evaluations: int) -> Table:
    """Return a table that leaves nothing of x, for a warm-up: it needs no steps of any model's schedule."""
    return Table(
        matrices=np.zeros((evaluations, STATE + 1, STATE + 2)),
        timesteps=np.ones(evaluations),
        input_scales=np.ones(evaluations),
        steps_done=np.arange(1, evaluations + 1),
        noise=np.full(evaluations, -1),
        levels=np.zeros((evaluations + 1, 2)),
        initial_scale=1.0,
    )
