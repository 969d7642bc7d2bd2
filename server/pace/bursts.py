"""How much longer steps take in the mean than their pace, a median, says. No clock: times are arguments.

A processor that is given in slices (a container's quota, a machine that swaps, neighbours) lets most steps be fast and
some very slow. A request has many steps, so it takes their mean: at three steps in ten of tenfold length, 3.7 times as
long as twelve medians.
"""

from __future__ import annotations

import threading
from collections import deque
from operator import itemgetter

_SECONDS = 10.0  # what is older is forgotten
_MOST = 256  # steps: looking at them takes microseconds
_LEAST = 16  # steps; of fewer nothing can be said


class Bursts:
    """Remembers what the steps of the last ten seconds took, and the median of those around each. For any thread."""

    def __init__(self) -> None:
        # By how much it took longer, seconds, median, when.
        self._steps: deque[tuple[float, float, float, float]] = deque(maxlen=_MOST)
        self._lock = threading.Lock()

    def stepped(self, now: float, seconds: float, median: float) -> None:
        """Note what a step took, a moment before `now`, and the median of the steps around it."""
        if median > 0:
            with self._lock:
                self._steps.append((seconds - median, seconds, median, now))

    def value(self, now: float) -> float:
        """Return the mean over the median, at least 1. The step with the largest excess is left out: a stall."""
        with self._lock:
            while self._steps and self._steps[0][3] <= now - _SECONDS:
                self._steps.popleft()
            steps = list(self._steps)
        if len(steps) < _LEAST:
            return 1.0
        steps.remove(max(steps))
        return max(1.0, sum(map(itemgetter(1), steps)) / sum(map(itemgetter(2), steps)))
