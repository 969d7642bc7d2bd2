"""The host stepper: the seats of one lane, and one evaluation over whoever sits.

A seat is rows of fixed buffers: S = [x, h1..h4], the table, the guidance, the context, perhaps a mask. Joining writes a
seat, leaving forgets it; nothing is rebuilt, so any mix of steps, guidance, samplers and masks shares every evaluation.
A guided seat owns two UNet rows, an unguided one the first of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from engines.backend import Denoiser, Ready
from pipeline.arrays import F32
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, STATE, Table
from pipeline.update import combine, guide, keep


class HostStepper:
    """Seats 0..seats-1 over a denoiser of 2 x seats rows."""

    def __init__(self, denoiser: Denoiser, seats: int) -> None:
        assert len(denoiser.samples) == 2 * seats
        self.seats = seats
        self.denoiser = denoiser
        shape = denoiser.samples.shape[1:]
        # [seats, S + out + noise, C, h, w]: what a table's matrix multiplies
        self._terms = np.zeros((seats, STATE + 2, *shape), np.float32)
        self._predictions = np.zeros((seats, *shape), np.float32)
        self._tables: list[Table | None] = [None] * seats
        self._matrices: list[F32] = [np.empty(0, np.float32)] * seats
        self._noise: list[F32] = [np.empty(0, np.float32)] * seats  # [1 + draws, C, h, w]
        self._inpaint: list[Inpaint | None] = [None] * seats
        self._guidance = [1.0] * seats
        self._reached = [0] * seats  # evaluations done

    def sit(
        self,
        seat: int,
        table: Table,
        noise: F32,
        context: F32,
        negative: F32 | None,
        guidance: float,
        *,
        start: int = 0,
        x: F32 | None = None,
        inpaint: Inpaint | None = None,
    ) -> None:
        """See Stepper.sit."""
        terms = self._terms[seat]
        terms[:] = 0  # the history of the last tenant
        terms[0] = noise[0] * np.float32(table.initial_scale) if x is None else x
        self._noise[seat], self._inpaint[seat] = noise, inpaint
        self.denoiser.contexts[2 * seat] = context
        self.denoiser.guidance[2 * seat : 2 * seat + 2] = guidance
        self._guidance[seat] = 1.0 if negative is None else guidance
        if negative is not None:
            self.denoiser.contexts[2 * seat + 1] = negative
        self._tables[seat] = table
        self._matrices[seat] = table.matrices.astype(np.float32)
        self._reached[seat] = start

    def leave(self, seat: int) -> None:
        self._tables[seat] = None

    def rows(self, seat: int) -> range:
        """The UNet rows that a seat owns: two when guided."""
        return range(2 * seat, 2 * seat + (2 if self._guidance[seat] > 1 else 1))

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        """One evaluation of each of `seats`, all of them unfinished; x0 is kept for those also in `predict`."""
        denoiser, rows = self.denoiser, []
        for seat in seats:
            table, reached = self._table(seat), self._reached[seat]
            assert reached < table.evaluations, f"seat {seat} is finished"
            for row in self.rows(seat):
                np.multiply(self._terms[seat, 0], np.float32(table.input_scales[reached]), out=denoiser.samples[row])
                denoiser.timesteps[row] = table.timesteps[reached]
                rows.append(row)
        denoiser.run(rows)
        for seat in seats:
            self._advance(seat, predict=seat in predict)

    def _advance(self, seat: int, *, predict: bool) -> None:
        outputs, terms, own = self.denoiser.outputs, self._terms[seat], self.rows(seat)
        table, reached = self._table(seat), self._reached[seat]
        terms[OUT_COLUMN] = outputs[own[0]]
        if len(own) == 2:
            terms[OUT_COLUMN] = guide(outputs[own[0]], outputs[own[1]], self._guidance[seat])
        if (draw := table.noise[reached]) >= 0:
            terms[NOISE_COLUMN] = self._noise[seat][1 + draw]
        matrix = self._matrices[seat][reached]  # [6, 7]
        if predict:
            self._predictions[seat] = combine(matrix[STATE], terms)
        terms[:STATE] = [combine(row, terms) for row in matrix[:STATE]]
        if (inpaint := self._inpaint[seat]) is not None:
            level = table.levels[reached + 1].astype(np.float32)
            terms[0] = keep(terms[0], inpaint, self._noise[seat][0], level)
        self._reached[seat] += 1

    def reached(self, seat: int) -> int:
        """Evaluations done by the seat's tenant."""
        return self._reached[seat]

    def finished(self, seat: int) -> bool:
        return self._reached[seat] == self._table(seat).evaluations

    def pending_latents(self, seat: int) -> Ready[F32]:
        return Ready(self.latents(seat))

    def pending_prediction(self, seat: int) -> Ready[F32]:
        return Ready(self.prediction(seat))

    def latents(self, seat: int) -> F32:
        """x of a seat, [C, h, w]: a copy, so that the seat may be given on."""
        return self._terms[seat, 0].copy()

    def prediction(self, seat: int) -> F32:
        """x0 after the last step for which it was asked, [C, h, w]: a copy."""
        return self._predictions[seat].copy()

    def _table(self, seat: int) -> Table:
        table = self._tables[seat]
        assert table is not None, f"seat {seat} is empty"
        return table
