"""How busy the device has been: the part of the time in which it worked, over the last pictures.

Time is forgotten by pictures and not by seconds, as a picture takes one device 50 ms and another a minute. No clock:
times are arguments.
"""

from __future__ import annotations

_PICTURES = 32  # in which what was is forgotten, by 1 / e
_MOST = 0.95  # a device that is always busy would have no end of those who come


class Load:
    """Remembers how long the device has worked, and how much time went by. Used by the device thread."""

    def __init__(self) -> None:
        self._busy = self._passed = 0.0  # seconds, as far as they are not forgotten
        self._last: float | None = None  # when a step ended, monotonic seconds

    def worked(self, seconds: float) -> None:
        """Note work beside the steps."""
        self._busy += max(0.0, seconds)

    def stepped(self, seconds: float, now: float) -> None:
        """Note a step that ended at `now`, monotonic seconds.

        A rest counts no more than all the work that is remembered: after a quiet night the morning is not quiet too.
        """
        passed = seconds if self._last is None else now - self._last
        rest = max(0.0, passed - seconds)
        self._passed += max(0.0, seconds) + min(rest, max(self._busy, seconds))
        self._last = now
        self.worked(seconds)

    def finished(self) -> None:
        """Note a finished picture: what came before counts a little less."""
        self._busy *= 1 - 1 / _PICTURES
        self._passed *= 1 - 1 / _PICTURES

    @property
    def value(self) -> float:
        """Return the part of the time, from 0 to 0.95."""
        return min(_MOST, self._busy / self._passed) if self._passed > 0 else 0.0
