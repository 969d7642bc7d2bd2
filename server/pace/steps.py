"""What a step of so many rows takes, told apart from how fast the machine is just now. No thread, no clock.

Two numbers of rows differ by less than a machine does within seconds: on two cores of an Intel Xeon a row takes 5.3 ms
in one second and 8 in another, and one of 16 together 6% less than one of two. So they are not compared as they were
measured. A step takes rows x speed x factor: the speed follows each step quickly, whatever its rows, and the factor of
its rows slowly, by what the speed does not explain.

Both are means, not medians: who takes eight short steps for a long one meets all that makes some of them long. In one
minute there the medians of 2 rows and of 16 were 6% apart, the means 13. A stop moves the speed by a third at most, for
ten steps; which jobs share a step depends on the factors alone.
"""

from __future__ import annotations

_QUICKLY = 0.3  # of a surprise is taken for the speed
_SLOWLY = 1 / 128  # of it for a factor, at least: as in a mean of the last 128 steps
_MOST = 2.0  # times what was expected: what a step took beyond was a stop, which has nothing to do with its rows
_LEAST = 1e-9  # seconds of a row: a speed of nothing would explain nothing


class Steps:
    """Learns what a step of each number of rows takes. One thread notes them, any thread asks."""

    def __init__(self, row: float) -> None:
        """Begin with the seconds a row."""
        self._speed = max(row, _LEAST)
        self._factors: dict[int, tuple[float, int]] = {}  # by rows: the factor, and how many steps told it

    def stepped(self, rows: int, seconds: float) -> None:
        """Note what a step took. A clock that went back says nothing."""
        if seconds < 0:
            return
        told = seconds / (rows * self._speed)
        factor, steps = self._factors.get(rows, (min(max(told, _LEAST), _MOST), 0))
        surprise = min(told / factor, _MOST) - 1
        self._speed = max(_LEAST, self._speed * (1 + _QUICKLY * surprise))
        # Of k steps the j-th weighs j: the first ones, which allocate memory and fill caches, are soon forgotten.
        factor = max(_LEAST, factor * (1 + max(2 / (steps + 2), _SLOWLY) * surprise))
        self._factors = {**self._factors, rows: (factor, steps + 1)}  # another one: somebody may be looking through it

    def value(self, rows: int) -> float | None:
        """Return the seconds of a step of so many rows, in proportion between and beyond those that have been.

        None before the first step.
        """
        factors = self._factors
        if not factors:
            return None
        fewer, more = (
            max((n for n in factors if n <= rows), default=0),
            min((n for n in factors if n >= rows), default=0),
        )
        if not fewer or not more or fewer == more:
            return rows * self._speed * factors[fewer or more][0]
        low, high = (known * self._speed * factors[known][0] for known in (fewer, more))
        return low + (high - low) * (rows - fewer) / (more - fewer)
