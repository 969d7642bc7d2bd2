"""Guidance in an interval against diffusers, whose callback stops guiding, and against what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engines.commands.compare import psnr
from engines.generate import generate
from engines.model import Model
from pipeline.conditions.interval import Interval
from tests.support.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

EXACT = 60.0  # dB. Seen: the same pixels; with one step more that is guided, 48 to 50
ASKED: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "a blue cat", "guidance": 6.0, "steps": 8}


def theirs(model: Model, sampler: str, guided: int) -> np.ndarray:
    """A picture that diffusers guides in its first steps; how to do that is in its documentation of callbacks."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        model.checkpoint.path, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler, switches = THEIRS[sampler]
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **switches)

    def after(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == guided:
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return values

    drawn = pipe(
        ASKED["prompt"],
        negative_prompt=ASKED["negative_prompt"],
        guidance_scale=ASKED["guidance"],
        num_inference_steps=ASKED["steps"],
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        callback_on_step_end=after,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    return (drawn.images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_guidance_that_ends_early(oracle: Model, sampler: str) -> None:
    wanted = theirs(oracle, sampler, guided=4)
    asked = {**ASKED, "sampler": sampler, "seed": 3}
    assert psnr(generate(oracle, **asked, interval=Interval(0.0, 0.5)), wanted) >= EXACT
    for other in (Interval(), Interval(0.0, 0.6), Interval(0.5, 1.0)):
        assert psnr(generate(oracle, **asked, interval=other), wanted) < EXACT


def test_none_and_all(oracle: Model) -> None:
    asked = {**ASKED, "sampler": "heun", "seed": 3}
    assert np.array_equal(generate(oracle, **asked, interval=Interval(0.0, 1.0)), generate(oracle, **asked))
    nowhere = generate(oracle, **asked, interval=Interval(0.3, 0.35))
    assert np.array_equal(nowhere, generate(oracle, **asked | {"guidance": 1.0}))
