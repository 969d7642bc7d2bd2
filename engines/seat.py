"""What a picture brings to its seat, as one value: a new condition is a new field here and no parameter elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.conditions.interval import WHOLE, Interval
from pipeline.conditions.mask import Inpaint
from pipeline.conditions.style import Style
from pipeline.loras.lora import Lora
from pipeline.samplers import Table


@dataclass(frozen=True, eq=False)
class Sitting:
    """A picture that is to be denoised: how it is stepped, from which noise, and under which conditions."""

    table: Table
    noise: F32  # [1 + table.draws, C, h, w]
    context: F32  # [tokens, width]
    negative: F32 | None = None  # [tokens, width]; None: unguided
    guidance: float = 1.0
    start: int = 0  # the evaluation of the table that comes first, of a picture that was paused
    x: F32 | None = None  # [C, h, w] to begin from; None: the first noise, scaled
    state: F32 | None = None  # [5, C, h, w] of a paused picture, to go on from at `start`: x, h1..h4 (Stepper.pause)
    inpaint: Inpaint | None = None  # what of another picture is to stay
    style: Style | None = None  # of a picture; only a model with a style adapter has seats for one
    lora: Lora | None = None  # of the rank that the lane runs; only a model that takes LoRAs has seats for one
    interval: Interval = WHOLE  # the part of the run that is guided, of a guided picture
    # What each of its rows is given beside the context, by the names of the UNet's inputs: one, or two of a guided one.
    beside: Sequence[Mapping[str, F32]] = ({}, {})
    seen: F32 | None = None  # [C + 1, h, w]: mask and masked latents, of a UNet that sees them beside x

    @property
    def guided(self) -> bool:
        """Return whether steps within the interval evaluate the picture with and without its prompt."""
        return self.negative is not None and self.guidance > 1

    def rows(self, evaluation: int) -> int:
        """Return how many UNet rows an evaluation takes: two where it is guided."""
        return 2 if self.guided and self._inside[evaluation] else 1

    @cached_property
    def _inside(self) -> NDArray[np.bool_]:
        return self.interval.inside(self.table)

    @property
    def texts(self) -> list[F32]:
        """Return the contexts of the picture's rows: one, or two of a guided picture."""
        return [self.context, self.negative] if self.negative is not None and self.guided else [self.context]

    @property
    def latents(self) -> F32:
        """Return x before the first evaluation, [C, h, w]."""
        return self.noise[0] * np.float32(self.table.initial_scale) if self.x is None else self.x
