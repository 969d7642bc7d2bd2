"""One evaluation of those whose turn it is, and what follows from it: previews, and pictures that are finished.

Between two steps every cache is cold, so what stays the same while nobody comes or goes is kept, and what can wait is
told several steps at once (ledger.py): with an embedded model's steps of 7 ms, 67 microseconds for a picture alone,
and 102 before (AMD Zen 4).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from engines.backend import Stepper
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.jobs import Jobs
from server.device.lanes import Lanes
from server.device.ledger import Ledger, Ran
from server.events import Evaluation
from server.job import Picture
from server.wish import LaneKey

_PREVIEWS = 3  # of one picture in the pool at once: steps that outrun the pool lose previews, not memory


class _Those(NamedTuple):
    """Holds who steps, while nobody comes or goes and the same seats are chosen."""

    moves: int  # Batcher.moves meanwhile
    seats: list[int]
    tenants: list[tuple[int, Picture]]
    stepper: Stepper


class Stepping:
    """Steps the lanes. Used by the device thread."""

    def __init__(self, jobs: Jobs, lanes: Lanes, ledger: Ledger, decoding: Decoding, delivery: Delivery) -> None:
        self._jobs, self._lanes, self._ledger = jobs, lanes, ledger
        self._decoding, self._delivery = decoding, delivery
        self._those: _Those | None = None
        self.took = 0.0  # seconds of the last step

    def step(self) -> bool:
        """Run one evaluation of those whose turn it is; returns whether somebody sits. Errors: those of Stepper.step.

        A picture that has had its last one leaves its seat, and waits for the decoder.
        """
        if (turn := self._jobs.next_step(time.monotonic())) is None:
            return False
        key, lane, seats = turn
        if (those := self._those) is None or those.seats is not seats or those.moves != self._jobs.batcher.moves:
            tenants = [(seat, tenant) for seat in seats if (tenant := lane.tenants[seat])]
            self._those = those = _Those(self._jobs.batcher.moves, seats, tenants, self._lanes[key])
        _, _, tenants, stepper = those
        previewed = [(seat, picture) for seat, picture in tenants if _wants_preview(picture)]
        rows = sum([picture.rows for _, picture in tenants])
        start = time.monotonic()
        stepper.step(seats, predict=[seat for seat, _ in previewed])
        self.took = took = time.monotonic() - start
        for seat, picture in tenants:
            picture.stepped += took
            picture.reached = stepper.reached(seat)
            timings, table = picture.job.timings, picture.job.wish.table
            timings.seats.append(len(tenants))
            if timings.evaluations is not None:
                done = table.steps_after(picture.reached)
                timings.evaluations.append(Evaluation(start + took, picture.index, done, len(tenants)))
        pictures = [(picture, picture.reached) for _, picture in tenants]
        self._ledger.add(Ran(key, rows, pictures, took, start, time.monotonic()))
        finished = [(seat, picture) for seat, picture in tenants if stepper.finished(seat)]
        if previewed or finished:
            self._ledger.enter()  # a step is told before the picture that shows it
        for seat, picture in previewed:
            done = picture.job.wish.table.steps_after(picture.reached)
            self._delivery.preview(picture, done, stepper.pending_prediction(seat))
        for seat, picture in finished:
            self._finish(key, seat, picture)
        return True

    def forget(self) -> None:
        """Hold nobody any more: who comes and goes is no concern of a device that rests."""
        self._those = None

    def _finish(self, lane: LaneKey, seat: int, picture: Picture) -> None:
        stepper = self._lanes[lane]
        latents = stepper.pending_latents(seat)
        stepper.leave(seat)
        self._jobs.finish(lane, seat)
        picture.sitting = None
        picture.job.timings.evaluated = time.monotonic()
        self._decoding.add(picture, latents)
        self.forget()


def _wants_preview(picture: Picture) -> bool:
    """Return whether a preview is due after the coming evaluation. Never after the last: the picture itself follows."""
    wish = picture.job.wish
    if not wish.preview_every or picture.previews_under_way >= _PREVIEWS or picture.evaluations_left == 1:
        return False
    done = wish.table.steps_after(picture.reached + 1)
    return done > wish.table.steps_after(picture.reached) and done % wish.preview_every == 0
