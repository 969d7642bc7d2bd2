"""How busy the device has been, and how many pictures are to be expected before it rests again.

Work and rest are forgotten by pictures and not by seconds, as a picture takes one device 50 ms and another a minute.
No clock: times are arguments.
"""

from __future__ import annotations

import math

from server.pace.behind import Behind

_PICTURES = 32  # in which what was is forgotten, by 1 / e
_MOST = 0.95  # a device that is always busy would have no end of those who come
_QUEUE = 20.0  # pictures to come for each one that waits for a seat: as on a device that is always busy
_AGE = 0.25  # pictures to come for each one that came since the last rest


class Load:
    """Remembers how long the device has worked and rested, as far as that is not forgotten. Used by its thread."""

    def __init__(self) -> None:
        self._busy = self._rest = 0.0  # seconds
        self._since = 0  # pictures that were finished since the last rest

    def worked(self, seconds: float) -> None:
        self._busy += max(0.0, seconds)

    def rested(self, seconds: float) -> None:
        """Note that there was nothing to do.

        A rest counts no more than all the work that is remembered: after a quiet night the morning is not quiet too.
        """
        self._rest += min(max(0.0, seconds), self._busy)
        self._since = 0

    def finished(self) -> None:
        """Note a finished picture: what came before counts a little less."""
        self._busy *= 1 - 1 / _PICTURES
        self._rest *= 1 - 1 / _PICTURES
        self._since += 1

    @property
    def value(self) -> float:
        """Return the part of the time in which the device worked, from 0 to 0.95."""
        return min(_MOST, self._busy / (self._busy + self._rest)) if self._busy > 0 else 0.0

    @property
    def behind(self) -> Behind:
        """Estimate how many pictures have what is saved now, told by those that are here: who comes later has it too.

        Those come who come before the device rests again. Where nothing could be saved later, there would be
        1 / (1 - load) of them for each one here (Kleinrock, Queueing Systems I, 1975, 5.8: the customers of a busy
        period). But who steps alone now can share a step later, when more are here. Between none and all of them the
        root was the best of the exponents 1/4, 1/2, 3/4 and 1, in exact time and with steps that differ by chance:
        where eight jobs together take 0.9 of the time of eight alone, equal jobs at a load of 0.9 then have 0.89 of the
        better whole batcher's p99, with all 0.92.

        Who waits for a seat finds the others seated however these step: where there is a queue, what is not shared now
        is not shared later either, and a queue says by itself that more come than are made, before the load does. Jobs
        of 4 to 50 steps that never run out have 0.99 of the rate of the best whole batcher so, where eight together
        take 0.96 of the time of eight alone, and 0.98 with the root.

        That is told by how many are here, and clients that ask for their next picture when they have the last are never
        here. Their load is told by its age: who has worked for long without a rest will go on for long. Eight of them
        step seven together so, and two without it; at loads of 0.5 to 0.95 the p99 of equal jobs stays within 2%. Only
        among those who are alike: beside seven clients of 50 steps a job of four would take 117 ms for 41. All of this
        in exact time.
        """
        return Behind(1 / math.sqrt(1 - self.value), _AGE * self._since, _QUEUE)
