"""Pictures of every sampler in company have the bits of those alone; what they are is test_topologies' to tell."""

from __future__ import annotations

import numpy as np
import pytest

from engines.choice import Choice
from engines.cpu.stepper import HostStepper
from engines.generate import generate
from engines.model import Model, load
from engines.seat import Sitting
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import Checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, table

PROMPT, NEGATIVE = "a red apple", "the blue cat"
GUIDANCE, SEED = 4.0, 11


@pytest.fixture(scope="module")
def tiny(checkpoint: Checkpoint) -> Model:
    return load(
        checkpoint, Choice("torch", "f32", threads=1)
    )  # as conftest has it: beside others torch's threads only spin


def test_a_seat_in_company_has_the_bits_of_the_picture_alone(tiny: Model) -> None:
    """Seats of every sampler at once, given on to the next as they finish: no history or noise is handed down."""
    spec, backend, seats = tiny.spec, tiny.backend, 5
    width, height = spec.defaults.width, spec.defaults.height
    stepper = HostStepper(backend.denoiser(width, height, rows=2 * seats), seats)
    contexts = [backend.encode(tiny.tokenizer.encode(prompt).ids) for prompt in (PROMPT, NEGATIVE)]
    waiting = [(name, 3 + i % 5, SEED + i) for i, name in enumerate((*SAMPLERS, *reversed(SAMPLERS)))]
    asked = {}
    while waiting or asked:
        for seat in set(range(seats)) - asked.keys():
            if waiting:
                asked[seat] = sampler, steps, seed = waiting.pop()
                run = table(spec.schedule, sampler, steps)
                noise = standard_normal(seed, spec.latent_shape(width, height), draws=1 + run.draws)
                stepper.sit(seat, Sitting(run, noise, contexts[0], contexts[1], GUIDANCE))
        stepper.step(sorted(asked))
        for seat in [seat for seat in asked if stepper.finished(seat)]:
            sampler, steps, seed = asked.pop(seat)
            got = to_pixels(backend.decode(stepper.latents(seat)))
            stepper.leave(seat)
            alone = generate(tiny, PROMPT, NEGATIVE, seed=seed, steps=steps, guidance=GUIDANCE, sampler=sampler)
            np.testing.assert_array_equal(got, alone, err_msg=sampler)
