"""What a step of so many rows takes, told apart from how fast the machine is just now. No thread, no clock.

Two numbers of rows differ by less than a machine does within seconds: on two cores of an Intel Xeon a row takes 5.3 ms
in one second and 8 in another, and one of 16 together 6% less than one of two. So they are not compared as they were
measured. A step takes rows x speed x factor. The speed follows each step quickly, whatever its rows. Factors follow
what it does not explain when the rows change: the fewer steps ago that was, the more, as the speed soon explains
everything. Of the two numbers before and after, what makes one factor more makes the other less: the first step of any
number is longer than those that follow. Told by every step, factors drifted: after 18,000 of two rows, among which one
in ten was long, these seemed to be 7% cheaper than those of 16, where they are 8% dearer (AMD Zen 4).

A surprise counts up to a tenth (Huber, Robust Estimation of a Location Parameter, 1964), as means believe what has
nothing to do with rows. Letting somebody in holds up the step that is under way, which nearly always has fewer rows
than those that follow: so two pictures together seemed to take 0.77 of what they take one after the other, on two cores
of an Intel Xeon with AMX, where medians say 0.93, a loop of steps alone 0.99, and these 0.89. Medians, for which it
counts less still, told 5 to 14% by how many samples they had. The speed alone follows two large surprises of one kind
in a row: another process has come, or gone. A stop moves it by 3%, but for the first step of all; who shares a step
depends on the factors alone.
"""

from __future__ import annotations

_QUICKLY = 0.25  # of a surprise is taken for the speed
_SLOWLY = 1 / 32  # of it for a factor when the rows have changed, at least
_CUT = 0.1  # of what was expected: a larger surprise counts as one of that size
_KNOWN = 16  # steps of so many rows, after which that is so: before, what is expected is a guess
_GUESSED = 4.0  # steps, as which it counts what lies between two numbers of rows: one step of its own says less
_MOST = 2.0  # times what was expected: what a step took beyond was a stop, which has nothing to do with its rows
_FIRST = 20.0  # times what was told of a row at start, or a part of it: that may have been of 16 rows at once
_LEAST = 1e-9  # seconds of a row: a speed of nothing would explain nothing


class Steps:
    """Learns what a step of each number of rows takes. One thread notes them, any thread asks."""

    def __init__(self, row: float) -> None:
        """Begin with the seconds a row."""
        self._speed = max(row, _LEAST)
        self._last = 0.0  # the last surprise, of what was expected
        self._factors: dict[int, tuple[float, float]] = {}  # by rows: the factor, and how many steps told it
        self._rows = self._before = 0  # of the last steps, and of those before them
        self._weight = 0.0  # of a surprise that says something of the factors: all when the rows change

    def stepped(self, rows: int, seconds: float) -> None:
        """Note what a step took. A clock that went back says nothing."""
        if seconds < 0:
            return
        if rows != self._rows:
            self._rows, self._before, self._weight = rows, self._rows, 1.0
        if not self._factors:  # the first step says what a row takes
            self._speed = max(self._speed / _FIRST, min(seconds / rows, _FIRST * self._speed))
            self._factors = {rows: (1.0, 1.0)}
            return
        relative = seconds / (rows * self._speed)
        factor, steps = self._factors.get(rows) or self._guess(rows) or (min(max(relative, _LEAST), _MOST), 0.0)
        surprise = min(relative / factor, _MOST) - 1
        cut = max(-_CUT, min(surprise, _CUT))
        again = min(surprise, self._last, key=abs) if surprise * self._last > 0 else 0.0
        self._last = surprise
        self._speed = max(_LEAST, self._speed * (1 + _QUICKLY * max(cut, again, key=abs)))
        # Of k steps the j-th weighs j: the first ones, which allocate memory and fill caches, are soon forgotten.
        learned = max(2 / (steps + 2), _SLOWLY) * self._weight * (surprise if steps < _KNOWN else cut)
        changed = {rows: (max(_LEAST, factor * (1 + learned)), steps + 1)}
        if before := self._factors.get(self._before):
            learned = max(2 / (before[1] + 2), _SLOWLY) * self._weight * cut
            changed[self._before] = max(_LEAST, before[0] / (1 + learned)), before[1]
        self._weight *= 1 - _QUICKLY
        self._factors = {**self._factors, **changed}  # another one: somebody may be looking through it

    def value(self, rows: int) -> float | None:
        """Return the seconds of a step of so many rows, in proportion between and beyond those that have been.

        None before the first step.
        """
        factors = self._factors
        if (exactly := factors.get(rows)) is not None:
            return rows * self._speed * exactly[0]
        if (between := self._guess(rows)) is not None:
            return rows * self._speed * between[0]
        if not factors:
            return None
        return rows * self._speed * factors[min(factors, key=lambda known: abs(known - rows))][0]

    def _guess(self, rows: int) -> tuple[float, float] | None:
        """Return the factor of rows that have not been, in proportion between those that have, and what it counts.

        None where they do not lie between two.
        """
        factors, fewer, more = self._factors, 0, 0
        for known in factors:
            if known < rows:
                fewer = max(fewer, known)
            else:
                more = min(more or known, known)
        if not fewer or not more:
            return None
        low, high = (known * factors[known][0] for known in (fewer, more))
        return (low + (high - low) * (rows - fewer) / (more - fewer)) / rows, _GUESSED
