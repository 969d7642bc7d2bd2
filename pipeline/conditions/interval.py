"""Guidance in an interval: the steps of a run that are guided, where the others are evaluated once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.samplers import Table


@dataclass(frozen=True)
class Interval:
    """Holds which part of a run is guided, as fractions of the steps that are made.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality", which
    counts in levels of noise. Of n steps step k = 0, 1, .. is inside where start <= k / n < end, and so are all of its
    evaluations: both of a Heun step, both of PNDM's first.
    """

    start: float = 0.0
    end: float = 1.0

    def inside(self, run: Table) -> NDArray[np.bool_]:
        """Return whether each evaluation of a run is guided: [evaluations]."""
        done = np.concatenate([[0], run.steps_done[:-1]])  # steps, before each evaluation
        return (self.start <= done / run.steps) & (done / run.steps < self.end)


WHOLE = Interval()
