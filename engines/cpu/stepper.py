"""The host stepper: the seats of one lane, and one evaluation over whoever sits.

A seat is rows of fixed buffers: S = [x, h1..h4], the table, the guidance, the context, perhaps a mask. Joining writes a
seat, leaving forgets it; nothing is rebuilt, so any mix of steps, guidance, samplers and masks shares every evaluation.
A guided seat owns two UNet rows, an unguided one the first of them; so does a guided one outside its interval.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from engines.backend import Denoiser, Ready
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, STATE
from pipeline.samplers.table import Sum
from pipeline.update import advance, combine, guide, keep


class HostStepper:
    """Seats 0..seats-1 over a denoiser of 2 x seats rows."""

    def __init__(self, denoiser: Denoiser, seats: int) -> None:
        assert len(denoiser.samples) == 2 * seats
        self.seats = seats
        self.denoiser = denoiser
        shape = denoiser.outputs.shape[1:]
        # [seats, S + out + noise, C, h, w]: what a table's matrix multiplies
        self._terms = np.zeros((seats, STATE + 2, *shape), np.float32)
        self._predictions = np.zeros((seats, *shape), np.float32)
        self._sittings: list[Sitting | None] = [None] * seats
        self._sums: list[list[list[Sum]]] = [[]] * seats
        self._reached = [0] * seats  # evaluations done

    def sit(self, seat: int, sitting: Sitting) -> None:
        """See Stepper.sit."""
        terms = self._terms[seat]
        terms[:] = 0  # the history of the last tenant
        if sitting.state is None:
            terms[0] = sitting.latents
        else:
            terms[:STATE] = sitting.state
        self.denoiser.guidance[2 * seat : 2 * seat + 2] = sitting.guidance
        for which, text in enumerate(sitting.texts):
            self.denoiser.contexts[2 * seat + which] = text
            self.denoiser.put(2 * seat + which, sitting.beside[which])
            self.denoiser.put_style(2 * seat + which, sitting.style, which)
            self.denoiser.put_lora(2 * seat + which, sitting.lora)
        if sitting.seen is not None:
            self.denoiser.samples[2 * seat : 2 * seat + 2, len(sitting.latents) :] = sitting.seen
        self._sittings[seat] = sitting
        self._sums[seat] = sitting.table.sums()
        self._reached[seat] = sitting.start

    def leave(self, seat: int) -> None:
        sitting, self._sittings[seat] = self._sittings[seat], None
        if sitting is not None and sitting.lora is not None:  # it may be the last to keep that in memory
            for row in (2 * seat, 2 * seat + 1):
                self.denoiser.put_lora(row, None)

    def pause(self, seat: int) -> Ready[F32]:
        """See Stepper.pause."""
        state = self._terms[seat, :STATE].copy()
        self.leave(seat)
        return Ready(state)

    def rows(self, seat: int) -> range:
        """Return the UNet rows that the coming evaluation of a seat's tenant takes: two where it is guided."""
        return range(2 * seat, 2 * seat + self._sitting(seat).rows(self._reached[seat]))

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        """See Stepper.step."""
        denoiser, rows = self.denoiser, []
        x = denoiser.samples[:, : denoiser.outputs.shape[1]]  # beside it may lie what a seat was given
        for seat in seats:
            table, reached = self._sitting(seat).table, self._reached[seat]
            assert reached < table.evaluations, f"seat {seat} is finished"
            for row in self.rows(seat):
                np.multiply(self._terms[seat, 0], np.float32(table.input_scales[reached]), out=x[row])
                denoiser.timesteps[row] = table.timesteps[reached]
                rows.append(row)
        denoiser.run(rows)
        for seat in seats:
            self._advance(seat, predict=seat in predict)

    def _advance(self, seat: int, *, predict: bool) -> None:
        sitting, terms, reached = self._sitting(seat), self._terms[seat], self._reached[seat]
        table, (row, *others) = sitting.table, self.rows(seat)
        out = self.denoiser.outputs
        if others:
            guide(out[row], out[others[0]], sitting.guidance, terms[OUT_COLUMN])
        else:
            terms[OUT_COLUMN] = out[row]
        if (draw := table.noise[reached]) >= 0:
            terms[NOISE_COLUMN] = sitting.noise[1 + draw]
        sums = self._sums[seat][reached]
        if predict:
            self._predictions[seat] = combine(sums[STATE], terms)
        advance(terms, sums)
        if sitting.inpaint is not None:
            level = table.levels[reached + 1].astype(np.float32)
            terms[0] = keep(terms[0], sitting.inpaint, sitting.noise[0], level)
        self._reached[seat] += 1

    def reached(self, seat: int) -> int:
        """See Stepper.reached: on a CPU none is under way."""
        return self._reached[seat]

    def finished(self, seat: int) -> bool:
        return self._reached[seat] == self._sitting(seat).table.evaluations

    def pending_latents(self, seat: int) -> Ready[F32]:
        return Ready(self.latents(seat))

    def pending_prediction(self, seat: int) -> Ready[F32]:
        return Ready(self.prediction(seat))

    def latents(self, seat: int) -> F32:
        """Return the value of `pending_latents`."""
        return self._terms[seat, 0].copy()

    def prediction(self, seat: int) -> F32:
        """Return the value of `pending_prediction`."""
        return self._predictions[seat].copy()

    def _sitting(self, seat: int) -> Sitting:
        sitting = self._sittings[seat]
        assert sitting is not None, f"seat {seat} is empty"
        return sitting
