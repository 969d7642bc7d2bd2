"""Whose turn it is on hardware that two devices share, while one takes over from the other.

The older one comes first whenever it has something to do: all that it has was promised on the whole device, before the
younger one took anything on, and its memory is free the sooner. So both keep their forecasts: the older one's hold as
if it were alone, the younger one's have what the older one has left before them. Rejected: turns in alternation, with
which what was admitted before takes twice as long as it was told.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Floor:
    """Knows whether a device thread computes, yields or rests.

    `changed` is its condition, which is notified; `remaining` forecasts the seconds of all that it has to do, and is
    called with the lock held.
    """

    def __init__(self, changed: threading.Condition, remaining: Callable[[], float]) -> None:
        self._changed, self._remaining = changed, remaining
        self._before: Floor | None = None
        self._after: Floor | None = None
        self._busy = self._over = self._rest = False
        self._resting = threading.Event()

    def follow(self, before: Floor) -> None:
        """Yield to the one before from now on. Called before the thread starts."""
        self._before, before._after = before, self

    def lead(self) -> None:
        """Yield to nobody any more: the one before has stopped."""
        self._before = None
        self._wake()

    @property
    def yields(self) -> bool:
        """Return whether the one before has something to do. No lock: at worst both do one step at once."""
        before = self._before
        return before is not None and before._busy and not before._over

    def waits(self) -> float:
        """Forecast the seconds that the one before still needs. Takes its lock, so it is not called with one's own."""
        if (before := self._before) is None:
            return 0.0
        with before._changed:
            return before._remaining()

    @property
    def stands(self) -> bool:
        """Return whether the thread does nothing for another's sake."""
        return self._rest or self.yields

    def take(self) -> None:
        """Note that the thread is about to compute. Called with the lock held."""
        self._busy = True

    def leave(self) -> None:
        """Note that the thread has nothing to do. Called with the lock held."""
        self._busy = False
        if self._after is not None:
            self._after._wake()  # takes its lock while this one is held; nobody takes them the other way round

    def end(self) -> None:
        """Note that the thread has done its last, or is lost."""
        with self._changed:  # not between at_rest's look at whether it is over and its wait for the rest
            self._over = True
            self._resting.set()
        if self._after is not None:
            self._after._wake()

    def pause(self) -> bool:
        """Return whether the thread is to stay between two turns, which it does then. Called with the lock held."""
        if self._rest:
            self._resting.set()
        return self._rest

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep the thread between two of its turns during a block, for who wants the hardware for a moment."""
        with self._changed:
            self._rest = True
            if not self._over:
                self._resting.clear()
            self._changed.notify()
        self._resting.wait()
        try:
            yield
        finally:
            with self._changed:
                self._rest = False
                self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()
