"""What files say, read anew when one of them changes. What cannot be read then changes nothing, and is logged once."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.errors import LatentdError

log = logging.getLogger("latentd.access")

_AGAIN = 10.0  # seconds after which what could not be read is tried again: it may have been for want of descriptors

Said = TypeVar("Said")


class Watched(Generic[Said]):
    """Holds what `read` makes of files, `noun` by name. Threads may share it. Errors of the constructor: `read`'s."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], Said], noun: str) -> None:
        self._paths, self._read, self._noun = paths, read, noun
        self._lock = threading.Lock()
        self._failed: object = None  # the state that could not be read
        self._again = 0.0
        self._seen = self._state()  # before it is read: what changes meanwhile is another state
        self._said = read()

    @property
    def said(self) -> Said:
        """Return what the files said when they were read last."""
        return self._said

    @property
    def changed(self) -> bool:
        """Return whether they are to be read again: they are others than those that were read, or it is time to try."""
        return self._due(self._state())

    @property
    def stale(self) -> bool:
        """Return whether they have changed and could not be read, so that what was before still counts."""
        return self._failed is not None and self._state() != self._seen

    def current(self) -> Said:
        """Return what the files say now."""
        with self._lock:
            if self._due(state := self._state()):
                try:
                    self._said, self._seen, self._failed = self._read(), state, None
                    log.info("%s read anew: %s", self._noun, self._paths[0])
                except LatentdError as error:
                    if state != self._failed:
                        log.error("%s; the %s before are kept", error, self._noun)
                    self._failed, self._again = state, time.monotonic() + _AGAIN
            return self._said

    def _due(self, state: object) -> bool:
        return state != self._seen and (state != self._failed or time.monotonic() >= self._again)

    def _state(self) -> tuple[object, ...]:
        return tuple(_state_of(path) for path in self._paths)


def contents(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes. Nothing else is opened to be waited for: calls wait meanwhile.

    Errors: ValueError, whose sentence goes on after the file's name.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("is no regular file")
            data = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise ValueError(f"has more than {most} bytes")
    return data


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO is open when somebody writes to it, which may be never


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, None where there is none; links are followed."""
    try:
        now = os.stat(path)
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


__all__ = ["Watched"]
