"""The schedule against diffusers: the same float32 numbers, and the same timesteps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from pipeline.errors import InvalidRequest
from pipeline.schedule import ScheduleSpec, alphas_cumprod, timesteps

SD = ScheduleSpec(1000, 0.00085, 0.012, "scaled_linear", "epsilon", "leading", 1, False)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50, 800, 999, 1000, 4000])
@pytest.mark.parametrize("betas", [(0.00085, 0.012), (0.0001, 0.02), (0.001, 0.001)])
def test_alphas_are_those_of_diffusers_exactly(kind: str, steps: int, betas: tuple[float, float]) -> None:
    theirs = DDIMScheduler(num_train_timesteps=steps, beta_start=betas[0], beta_end=betas[1], beta_schedule=kind)
    spec = dataclasses.replace(SD, train_steps=steps, beta_start=betas[0], beta_end=betas[1], beta_schedule=kind)
    assert np.array_equal(alphas_cumprod(spec), theirs.alphas_cumprod.double().numpy())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50, 150, 499, 998])
def test_timesteps_are_those_of_diffusers(spacing: str, steps: int) -> None:
    theirs = DDIMScheduler(steps_offset=1, timestep_spacing=spacing)  # type: ignore[arg-type]
    theirs.set_timesteps(steps)
    spec = dataclasses.replace(SD, spacing=spacing)
    ours = timesteps(spec, steps, spacing="another, which the spec overrules")
    # Theirs may have one more than asked for, -1, where rounding lets np.arange("trailing") count past its end.
    assert np.array_equal(np.round(ours), theirs.timesteps.numpy()[:steps])
    silent = dataclasses.replace(SD, spacing=None)
    assert np.array_equal(timesteps(silent, steps, spacing=spacing), ours)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_more_steps_than_there_is_room_for(spacing: str) -> None:
    spec = dataclasses.replace(SD, train_steps=60, spacing=spacing, steps_offset=0)
    assert len(np.unique(np.round(timesteps(spec, 60, spacing=spacing)))) == 60
    with pytest.raises(InvalidRequest, match="steps is 61; the model's 60 timesteps"):
        timesteps(spec, 61, spacing=spacing)


def test_an_offset_past_the_last_timestep() -> None:
    spec = dataclasses.replace(SD, train_steps=60, steps_offset=1)
    assert timesteps(spec, 59, spacing="leading")[0] == 59
    with pytest.raises(InvalidRequest, match="steps is 60"):
        timesteps(spec, 60, spacing="leading")
