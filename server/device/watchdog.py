"""Notices a device that does not come back: a kernel that never ends, a driver that waits for ever.

Nothing else would: health is answered by another thread, and the one that owns the device is inside a call that no
signal interrupts. Patience follows the measured times, so that a slow machine is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.device.loop import Device

_TICK = 1.0  # seconds between looks
_FORECASTS = 10  # of what a step of all seats takes: slow is not stuck


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
