"""The tests' own checkpoints are what they promise to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from pipeline.spec import read_spec
from tests.support.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("kind", "scheduler", "prediction"), [("sd1", "DDIMScheduler", None), ("sd2", "EulerDiscreteScheduler", "epsilon")]
)
def test_diffusers_makes_pictures_with_contrast(
    tmp_path: Path, kind: str, scheduler: str, prediction: str | None
) -> None:
    make_checkpoint(tmp_path, kind=kind, scheduler=scheduler, prediction_type=prediction)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler).__name__ == scheduler

    def picture(prompt: str) -> np.ndarray:
        seed = torch.Generator().manual_seed(1)
        result = pipe(prompt, num_inference_steps=3, guidance_scale=3.0, output_type="np", generator=seed)
        return np.asarray(result.images[0])

    red, blue = picture("a red apple"), picture("a blue cat")
    spec = read_spec(tmp_path)
    assert red.shape == (spec.defaults.height, spec.defaults.width, 3)
    assert red.std(axis=(0, 1)).min() > 0.1, "flat"  # of a range of 1
    assert np.abs(red - blue).mean() > 0.01, "the prompt does nothing"


def test_the_seed_makes_the_weights(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        folder = make_checkpoint(tmp_path / name, seed=seed)
        return (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()

    one = weights("one", 1)
    assert one == weights("again", 1) != weights("two", 2)
