"""Pictures that come and go in the seats of one lane, and are paused on their way."""

from __future__ import annotations

import random
from dataclasses import replace

from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32

SEATS = 4


def drawn(model: Model, sittings: list[Sitting], seed: int) -> list[F32]:
    """The latents of sittings that come and go at random in the seats of one lane, and are paused on their way."""
    chance, default = random.Random(seed), model.spec.defaults
    stepper = model.backend.stepper(default.width, default.height, SEATS, steps=16)
    waiting, sits, got = list(enumerate(sittings)), dict[int, int](), dict[int, F32]()
    while waiting or sits:
        free = [seat for seat in range(SEATS) if seat not in sits]
        for seat in chance.sample(free, min(len(free), len(waiting), chance.randrange(1, SEATS + 1))):
            number, one = waiting.pop(0)
            stepper.sit(seat, one)
            sits[seat] = number
        stepper.step(sorted(sits))
        for seat in [seat for seat in sits if stepper.finished(seat)]:
            got[sits.pop(seat)] = stepper.pending_latents(seat).get()
            stepper.leave(seat)
        for seat in [seat for seat in sits if chance.random() < 0.2]:
            number, start = sits.pop(seat), stepper.reached(seat)
            paused = replace(sittings[number], start=start, state=stepper.pause(seat).get())
            waiting.insert(chance.randrange(len(waiting) + 1), (number, paused))
    return [got[number] for number in range(len(sittings))]
