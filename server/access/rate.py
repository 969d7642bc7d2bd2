"""A token bucket: so many requests a minute, and as many at once by who has waited."""

from __future__ import annotations


class Bucket:
    """Holds what a caller has left. It begins full: one minute's requests, of which it never has more."""

    def __init__(self, now: float) -> None:
        self._left: float | None = None
        self._when = now

    def take(self, rate: float, now: float) -> float:
        """Take a request of `rate` a minute; returns 0, or the seconds until there is one. `now`: monotonic seconds.

        The rate may be another one each time: a file of keys may have changed.
        """
        most = max(1.0, rate)
        left = most if self._left is None else min(most, self._left + (now - self._when) * rate / 60)
        self._left, self._when = left, now
        if left < 1:
            return (1 - left) * 60 / rate
        self._left -= 1
        return 0.0


__all__ = ["Bucket"]
