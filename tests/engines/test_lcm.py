"""A UNet that was distilled with its guidance (LCM): one row a picture, the guidance one more input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import generate
from engines.model import load
from latentd import Client
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from tests.support.checkpoints import make_checkpoint
from tests.support.serving import address, serving


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("lcm") / "lcm", unet={"time_cond_proj_dim": 32}))


def diffusers_picture(folder: Path, prompt: str, guidance: float) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    told = pipeline(
        prompt,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )
    return told.images[0] * 255


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_pictures_are_diffusers_and_guidance_shows(lcm: Checkpoint, backend: str) -> None:
    model = load(lcm, Choice(backend, "f32"))
    wanted = diffusers_picture(lcm.path, "the red apple", 8.0)
    assert wanted.std() > 20
    picture = generate(model, "the red apple", seed=3, steps=4, guidance=8.0, sampler="lcm")
    assert psnr(picture, wanted) > 45
    other = generate(model, "the red apple", seed=3, steps=4, guidance=3.0, sampler="lcm")
    assert psnr(other, wanted) < 45


def test_a_served_picture_has_one_row_and_the_same_bits(lcm: Checkpoint) -> None:
    model = load(lcm, Choice("openvino", "f32"))
    with serving(model) as server, Client(address(server)) as client:
        (picture,) = client.generate("the red apple", seed=3, steps=4, guidance=8.0, sampler="lcm")
    assert (
        np.asarray(picture.image) == generate(model, "the red apple", seed=3, steps=4, guidance=8.0, sampler="lcm")
    ).all()
