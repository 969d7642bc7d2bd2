"""The floor that two devices share, where its moments are chosen by hand."""

from __future__ import annotations

import threading

from engines.model import Model
from server.device.floor import Floor
from server.events import Done, Step
from tests.support.held import Held, eventually
from tests.support.jobs import box_of, running
from tests.support.patience import PATIENCE


class Contended:
    """Is a lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.waited = threading.Lock(), threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self.waited.set()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def test_a_thread_that_ends_as_somebody_asks_it_to_rest_is_not_waited_for() -> None:
    """It ends just after that one has looked whether it is over: the hardware is free, and a swap goes on."""
    lock = Contended()
    floor = Floor(threading.Condition(lock), lambda: 0.0)  # type: ignore[arg-type]
    ended = threading.Event()

    def end() -> None:
        floor.end()
        ended.set()
        lock.waited.set()

    class Clearing(threading.Event):
        def clear(self) -> None:
            threading.Thread(target=end, daemon=True).start()
            assert lock.waited.wait(PATIENCE)  # it is over, or waits until the look is
            super().clear()

    floor._resting = Clearing()
    rested = threading.Event()

    def rest() -> None:
        with floor.at_rest():
            rested.set()

    threading.Thread(target=rest, daemon=True).start()
    assert ended.wait(PATIENCE) and rested.wait(PATIENCE)


def test_who_steps_calmly_yields_though_nobody_rings(wired: Model, held: Held) -> None:
    """The one before has something to do again, which its own thread notes without a word to the others."""
    before = Floor(threading.Condition(), lambda: 0.0)
    with running(wired) as at_work:
        held.hold()
        held.runs.clear()
        floor = at_work.device.floor
        floor.follow(before)
        job = at_work.submit(prompt="a", steps=6)
        held.begun()
        held.let()
        held.begun()  # a second step of the same: nothing was looked for before it
        before.take()
        held.let()
        eventually(lambda: floor._busy, False)
        assert len(held.runs) == 2 and box_of(job).events[-1] == Step(0, 2, 6), "it is told before the rest"
        before.leave()
        held.begun()
        held.release()
        assert isinstance(box_of(job).end(), Done) and len(held.runs) == 6
