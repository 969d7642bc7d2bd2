"""The median of the latest samples of a cost: one sample, however long, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

_SAMPLES = 9


class Median:
    """Holds the median of the latest samples, the lower one of two. Any thread may add: at worst a sample is lost."""

    def __init__(self, samples: Iterable[float] = ()) -> None:
        self._samples = tuple(samples)
        self.value = _low(self._samples) if self._samples else 0.0

    @property
    def middle(self) -> float | None:
        """Return the sample that as many came after as before, of full samples: after a change they have its pace."""
        return self._samples[_SAMPLES // 2] if len(self._samples) == _SAMPLES else None

    def add(self, sample: float) -> None:
        if sample >= 0:  # a clock that went back says nothing
            self._samples = (*self._samples, sample)[-_SAMPLES:]
            self.value = _low(self._samples)


def _low(samples: tuple[float, ...]) -> float:
    return sorted(samples)[(len(samples) - 1) // 2]
