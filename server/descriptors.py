"""File descriptors: as many as the system allows, how many connections they suffice for, and a watch on the rest.

Out of descriptors nobody can connect, not even to ask for health, and a file that a request needs cannot be opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

log = logging.getLogger("latentd.server")

_ENOUGH = 65_536  # connections are 4,096 at most by default; a limit of millions makes others loop over it
_BASE = 24  # of the server itself: 20 with the demo model on OpenVINO, 2026-11-29
_TICK = 1.0  # seconds between looks; a look takes 0.3 ms for a thousand open ones


def raise_limit() -> int:
    """Raise the soft limit as far as is of use, and return it. Of no effect where the system has no such limit."""
    try:
        import resource
    except ModuleNotFoundError:  # not a Unix
        return _ENOUGH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _ENOUGH if hard == unlimited else min(hard, _ENOUGH)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower one than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _ENOUGH if soft == unlimited else soft


def reserve(limit: int) -> int:
    """Return how many of `limit` descriptors are kept for what is not a connection."""
    return min(64, limit // 4)


def connections(limit: int) -> tuple[int, int]:
    """Return how many connections of gRPC, and of who scrapes metrics, `limit` descriptors suffice for."""
    left = max(8, limit - reserve(limit) - _BASE)
    scrapers = min(64, left // 4)
    return left - scrapers, scrapers


def count() -> int:
    """Count the descriptors that are open."""
    return len(os.listdir("/dev/fd")) - 1  # its own


class Descriptors:
    """Looks every second how many descriptors are free. `scarce` is called with a sentence when they get scarce.

    It is called with None when twice the reserve is free again. Both are logged, once.
    """

    def __init__(self, limit: int, scarce: Callable[[str | None], object], count: Callable[[], int] = count) -> None:
        self._limit, self._scarce, self._count = limit, scarce, count
        self._short = False

    def look(self) -> None:
        try:
            free = self._limit - self._count()
        except OSError:  # counting takes one
            free = 0
        kept = reserve(self._limit)
        if not self._short and free < kept:
            self._short = True
            sentence = f"{free} of {self._limit} file descriptors are free, and {kept} are kept; ask again later"
            log.error("not ready: %s (ulimit -n raises the limit)", sentence)
            self._scarce(sentence)
        elif self._short and free >= min(2 * kept, self._limit // 2):
            self._short = False
            log.warning("ready again: %d of %d file descriptors are free", free, self._limit)
            self._scarce(None)

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_TICK)
