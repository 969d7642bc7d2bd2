"""Notices a device that does not come back: a kernel that never ends, a driver that waits for ever.

Nothing else would: health is answered by another thread, and the one that owns the device is inside a call that no
signal interrupts. Patience follows the measured times, so that a slow machine is left alone.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from server.device.loop import Device

_TICK = 1.0  # seconds between looks
_FORECASTS = 10  # of what a step of all seats takes: slow is not stuck


class Watchdog:
    """Watches every device that serves: one, or two while the model is swapped. `stalled` hears of the longest idle."""

    def __init__(self, seconds: float, stalled: Callable[[float], object]) -> None:
        self._seconds, self._stalled = seconds, stalled
        self._watching: dict[Device, asyncio.Task[None]] = {}
        self._idle: dict[Device, float] = {}

    def begin(self, device: Device) -> None:
        """Watch a device from now on."""
        heard = functools.partial(self._heard, device)
        self._watching[device] = asyncio.create_task(watch(device, self._seconds, stalled=heard))

    async def end(self, device: Device) -> None:
        """Watch a device no more: it has stopped."""
        watching = self._watching.pop(device)
        watching.cancel()
        await asyncio.wait([watching])  # it holds the device until then
        self._idle.pop(device, None)

    def close(self) -> None:
        """Watch nothing any more."""
        for watching in self._watching.values():
            watching.cancel()

    def _heard(self, device: Device, idle: float) -> None:
        self._idle[device] = idle
        self._stalled(max(self._idle.values()))


async def watch(
    device: Device, seconds: float, tick: float = _TICK, stalled: Callable[[float], object] = lambda seconds: None
) -> None:
    """Give the device up once it had work and did none for `seconds`, or ten forecasts of a full step if that is more.

    `stalled` hears after each tick for how long it has had work and done none. Returns when it has given up, or at once
    where `seconds` is 0. Ticks are counted, not the clock: a process that was stopped for an hour and goes on (SIGSTOP,
    a laptop's lid) has not been stuck.
    """
    seen, idle = -1, 0.0
    while seconds:
        await asyncio.sleep(tick)
        pulse = device.pulse
        idle = idle + tick if device.owes and pulse == seen else 0.0
        seen = pulse
        stalled(idle)
        if idle >= max(seconds, _FORECASTS * device.full_step):
            device.give_up(f"nothing for {idle:.0f} s")
            return
