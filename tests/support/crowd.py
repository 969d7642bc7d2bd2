"""Requests that come and go at random, beside tenants that are not numbers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np

from engines.cuda.stepper import CudaStepper
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import Table
from tests.support.requests import Request, table_of

# Of max|x| after a run: the UNet over a batch, with its projections packed, sums in another order than row by row.
# Seen: 3e-6.
BATCHED = 3e-5


def poisoned_sit(stepper: CudaStepper, seat: int, run: Table, shape: tuple[int, ...], context: F32) -> None:
    noise = np.full((1 + run.draws, *shape), np.nan, np.float32)
    masked = Inpaint(np.full(shape[1:], 0.25, np.float32), noise[0]) if seat % 2 else None
    nothing = context * np.float32(np.nan)
    stepper.sit(seat, Sitting(run, noise, nothing, nothing, 5.0, inpaint=masked))


def crowd(
    stepper: CudaStepper,
    seed: int,
    joins: int,
    requests: list[Request],
    sit_down: Callable[[int, Request], None],
    poison: Callable[[int], None],
    compare: Callable[[Request, F32], None],
    model: Model,
) -> Counter[str]:
    """`joins` at random, of requests, with cancellations, steps of any subset, and tenants that are not numbers."""
    chance, told = random.Random(seed), Counter[str]()
    tenants: dict[int, Request | None] = {}
    lengths: dict[int, int] = {}
    while told["joined"] < joins or tenants:
        for seat in range(stepper.seats):
            if seat in tenants or told["joined"] >= joins or chance.random() < 0.4:
                continue
            told["joined"] += 1
            if chance.random() < 0.06:
                tenants[seat], lengths[seat] = None, chance.randrange(1, 5)
                poison(seat)
            else:
                tenants[seat] = asked = chance.choice(requests)
                lengths[seat] = table_of(model, asked).evaluations
                sit_down(seat, asked)
        # Mostly all who sit, as a server has it; else some of them.
        stepping = [seat for seat in tenants if chance.random() < (1.0 if chance.random() < 0.8 else 0.6)]
        chance.shuffle(stepping)
        stepper.step(stepping)
        for seat in list(tenants):
            request = tenants[seat]
            if request is None and stepper.reached(seat) > 0:
                assert np.isnan(stepper.latents(seat)).all()
            if stepper.reached(seat) == lengths[seat]:
                if request is not None:
                    assert stepper.finished(seat)
                    compare(request, stepper.latents(seat))
                    told["finished"] += 1
                    told["masked"] += request.mask is not None
            elif chance.random() > 0.04:
                continue
            else:
                told["left"] += 1
            stepper.leave(seat)
            del tenants[seat]
    return told
