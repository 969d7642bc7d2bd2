"""Requests as steppers take them, at random too, and a seat's way from joining to its end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.cpu.stepper import HostStepper
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.conditions.interval import WHOLE, Interval
from pipeline.conditions.mask import Inpaint
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, Table, table

WORDS = ["a", "red", "blue", "apple", "cat", "photo", "of", "the"]


@dataclass(frozen=True)
class Request:
    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    sampler: str
    mask: int | None = None  # seed of a mask and of the picture under it
    begin: int = 0  # steps that are not made: it begins with an x
    interval: Interval = WHOLE


def inpaint_of(request: Request, shape: Sequence[int]) -> Inpaint | None:
    """What stays, what is made anew and what is between the two, for latents of `shape` [C, h, w]."""
    if request.mask is None:
        return None
    chance = np.random.default_rng(request.mask)
    mask = np.clip(chance.random(tuple(shape[1:]), np.float32) * 2 - np.float32(0.5), 0, 1)
    return Inpaint(mask, chance.standard_normal(tuple(shape), np.float32))


def x_of(request: Request, shape: Sequence[int]) -> F32 | None:
    """What a request begins with that does not make all of its steps."""
    return standard_normal(request.seed ^ 1, tuple(shape))[0] if request.begin else None


def random_request(chance: random.Random, sampler: str | None = None) -> Request:
    def words() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randrange(6)))

    steps, ends = chance.randrange(1, 9), sorted(chance.sample(range(5), 2))
    return Request(
        words(),
        words(),
        chance.randrange(2**32),
        steps,
        chance.choice((0.0, 1.0, 1.5, 3.0, 7.5)),
        sampler or chance.choice(list(SAMPLERS)),
        chance.choice((None, None, chance.randrange(2**32))),
        chance.choice((0, chance.randrange(steps))),
        chance.choice((WHOLE, Interval(ends[0] / 4, ends[1] / 4))),
    )


def conditions_of(request: Request, shape: Sequence[int]) -> dict[str, Any]:
    """Fields of a Sitting, and options of generate's."""
    return {"x": x_of(request, shape), "inpaint": inpaint_of(request, shape), "interval": request.interval}


def table_of(model: Model, request: Request) -> Table:
    return table(model.spec.schedule, request.sampler, request.steps, request.begin)


def latent_shape(model: Model) -> tuple[int, int, int]:
    return model.spec.latent_shape(model.spec.defaults.width, model.spec.defaults.height)


def sit(stepper: HostStepper, seat: int, model: Model, request: Request) -> None:
    run, shape = table_of(model, request), latent_shape(model)

    def context(text: str) -> F32:
        return model.backend.encode(model.tokenizer.encode(text).ids)

    noise = standard_normal(request.seed, shape, draws=1 + run.draws)
    negative = context(request.negative) if request.guidance > 1 else None
    conditions = conditions_of(request, shape)
    stepper.sit(seat, Sitting(run, noise, context(request.prompt), negative, request.guidance, **conditions))


def finish(stepper: HostStepper, seat: int) -> F32:
    while not stepper.finished(seat):
        stepper.step([seat])
    return stepper.latents(seat)
