"""The floor that two devices share, where its moments are chosen by hand."""

from __future__ import annotations

import threading

from server.device.floor import Floor
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
