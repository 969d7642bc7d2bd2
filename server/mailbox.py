"""Events from the device thread to one reader on the event loop.

A slow reader loses old steps and previews, never an image, and holds nobody up: a mailbox keeps the latest step
and preview of each picture and every other event, so its size is bounded by the request's own pictures. A step
wakes its reader ten times a second at most, which is as often as a progress bar is looked at: where steps take
milliseconds, a message each would cost the device's cores more than it tells. Who shows no progress is not woken for
any.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

from pipeline.errors import LatentdError
from server.events import Done, Event, Failed, Image, Preview, Started, Step

_STEP_SECONDS = 0.1


class Mailbox:
    """Holds a job's events until they are read: posted to from any thread, read by one task of `loop`.

    Without `progress` Started and Step are left out.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, progress: bool = True) -> None:
        self._loop, self._progress = loop, progress
        self._lock = threading.Lock()
        self._events: dict[object, Event] = {}  # in order of arrival
        self._arrived = asyncio.Event()
        self._woken = False
        self._step_due = 0.0  # monotonic seconds: no step wakes the reader before

    def post(self, event: Event) -> None:
        if not self._progress and isinstance(event, Started | Step):
            return
        replaceable = isinstance(event, Step | Preview)
        key: object = (type(event), event.index) if isinstance(event, Step | Preview) else object()
        with self._lock:
            if replaceable:
                self._events.pop(key, None)
            self._events[key] = event
            if isinstance(event, Started | Step):
                now = time.monotonic()
                if isinstance(event, Step) and now < self._step_due:
                    return  # it travels with whatever comes next
                self._step_due = now + _STEP_SECONDS
            wake, self._woken = not self._woken, True
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending and nobody reads
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[Event]:
        """Take all events that have come since the last call; waits for one. The last one ever is Done or Failed."""
        await self._arrived.wait()
        with self._lock:
            events = list(self._events.values())
            self._events.clear()
            self._arrived.clear()
            self._woken = False
        return events


def is_last(event: Event) -> bool:
    return isinstance(event, Done | Failed)


async def collect(events: AsyncIterator[Event]) -> tuple[list[Image], Done]:
    """Wait for all pictures of a job; returns them in the order of their indices, and the event of its end."""
    pictures: list[Image] = []
    async for event in events:
        if isinstance(event, Image):
            pictures.append(event)
        elif isinstance(event, Done):
            return sorted(pictures, key=lambda image: image.index), event
    raise LatentdError("the job ended without saying so")
