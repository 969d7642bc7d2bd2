"""The margin by which forecasts are multiplied, learned from how wrong they were. No clock: times are arguments."""

from __future__ import annotations

from collections import deque

_SECONDS = 10.0  # what is older is forgotten
_QUANTILE = 0.98  # who is admitted under load is admitted just so: as many are late as lie beyond it
_MOST = 2.0  # a stall makes no forecast worthless


class Margin:
    """Remembers the ratios of real to forecast durations of the jobs that ended in the last ten seconds."""

    def __init__(self) -> None:
        self._ratios: deque[tuple[float, float]] = deque()  # when, ratio

    def ended(self, now: float, ratio: float) -> None:
        self._ratios.append((now, ratio))
        self._forget(now)

    def value(self, now: float) -> float:
        """Return a high quantile of the ratios, 1 to 2; 1 where nothing has ended lately."""
        self._forget(now)
        if not self._ratios:
            return 1.0
        ordered = sorted(ratio for _, ratio in self._ratios)
        return min(_MOST, max(1.0, ordered[int(_QUANTILE * (len(ordered) - 1))]))

    def _forget(self, now: float) -> None:
        while self._ratios and self._ratios[0][0] <= now - _SECONDS:
            self._ratios.popleft()
