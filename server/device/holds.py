"""Who is on the way to a device: requests that have chosen it and have not submitted all of their jobs yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from server.device.loop import Device


class Holds:
    """Counts a device's holders, so that it is not let go of while somebody comes. Used from one event loop."""

    def __init__(self) -> None:
        self._held: Counter[Device] = Counter()
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def of(self, device: Device) -> Iterator[Device]:
        """Hold a device during a block."""
        self._held[device] += 1
        try:
            yield device
        finally:
            self._held[device] -= 1
            if not self._held[device]:
                del self._held[device]
            self._changed.set()

    async def forsaken(self, device: Device) -> None:
        """Wait until nobody holds a device, which nobody chooses any more, and all of its jobs have ended."""
        loop = asyncio.get_running_loop()

        def emptied() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits here
                loop.call_soon_threadsafe(self._changed.set)

        device.emptied = emptied
        while True:
            self._changed.clear()
            if not (self._held[device] or device.jobs):
                return
            await self._changed.wait()
