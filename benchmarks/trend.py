"""Is there an upward trend? Theil and Sen's slope (Sen 1968), and the test of Mann (1945) and Kendall for one."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence


def slope(values: Sequence[float]) -> float:
    """Return the median slope between two values, each one apart from the next; 0 of fewer than two."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median([(b - a) / (j - i) for (i, a), (j, b) in pairs] or [0.0])


def rises(values: Sequence[float]) -> float:
    """Return the probability of as many rising pairs, or more, if there is no trend: small where there is one."""
    count = len(values)
    if count < 3:
        return 1.0
    score = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return 0.5 * math.erfc((score - (score > 0) + (score < 0)) / spread / math.sqrt(2))
