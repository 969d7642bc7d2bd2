"""Whole pictures of every sampler: diffusers' pipeline draws the same, and so does a seat in company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray

from engines.commands.compare import psnr
from engines.cpu.stepper import HostStepper
from engines.generate import generate
from engines.model import Model, load
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import Checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, table
from tests.support.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Pixels = NDArray[np.uint8]

PROMPT, NEGATIVE = "a red apple", "the blue cat"
STEPS, GUIDANCE, SEED = 20, 4.0, 11
LEAST = 45.0  # dB


@pytest.fixture(scope="module")
def tiny(checkpoint: Checkpoint) -> Model:
    return load(checkpoint, "torch", "f32", threads=1)  # as conftest has it: beside others torch's threads only spin


@pytest.fixture(scope="module")
def pipe(checkpoint: Checkpoint) -> Any:
    made: Any = StableDiffusionPipeline.from_pretrained(
        checkpoint.path, safety_checker=None, torch_dtype=torch.float32, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    made.checkpoints_own = made.scheduler.config
    return made


def ours(model: Model, sampler: str, seed: int = SEED) -> Pixels:
    return generate(model, PROMPT, NEGATIVE, seed=seed, steps=STEPS, guidance=GUIDANCE, sampler=sampler)


def theirs(pipe: Any, sampler: str) -> Pixels:
    scheduler, switches = THEIRS[sampler]
    pipe.scheduler = scheduler.from_config(pipe.checkpoints_own, **switches)
    result = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    )
    return np.asarray(np.round(result.images[0] * 255), np.uint8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_picture_of_diffusers(sampler: str, tiny: Model, pipe: Any) -> None:
    """A stochastic sampler's noise comes from the seed's generator, in the pipeline's order."""
    wanted = theirs(pipe, sampler)
    assert wanted.std() > 20, "flat"
    assert psnr(ours(tiny, sampler), wanted) >= LEAST
    assert psnr(ours(tiny, sampler, seed=SEED + 1), wanted) < LEAST
    names = list(SAMPLERS)
    neighbour = names[(names.index(sampler) + 1) % len(names)]
    assert psnr(ours(tiny, neighbour), wanted) < LEAST, neighbour


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
                stepper.sit(seat, run, noise, contexts[0], contexts[1], GUIDANCE)
        stepper.step(sorted(asked))
        for seat in [seat for seat in asked if stepper.finished(seat)]:
            sampler, steps, seed = asked.pop(seat)
            got = to_pixels(backend.decode(stepper.latents(seat)))
            stepper.leave(seat)
            alone = generate(tiny, PROMPT, NEGATIVE, seed=seed, steps=steps, guidance=GUIDANCE, sampler=sampler)
            np.testing.assert_array_equal(got, alone, err_msg=sampler)
