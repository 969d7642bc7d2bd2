"""SD 1.5's and SD 2.1's topology at a fifth of the width: every sampler draws diffusers' latents and pictures.

The first has its UNet in shards and its VAE under old names, the second its weights as they come; single files are
converted bit for bit into such folders (tests/export/test_single_file.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import latents_of
from engines.model import Model, load
from pipeline.arrays import F32, to_pixels
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.samplers import SAMPLERS
from tests.support.topologies import TOPOLOGIES, make_topology
from tests.support.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

PROMPT, NEGATIVE = "a red apple", "the blue cat"
STEPS, GUIDANCE, SEED = 20, 4.0, 11


@pytest.fixture(scope="module", params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    kind: str = request.param
    if kind == "sd1":
        return request.getfixturevalue("sd1_checkpoint")
    return open_checkpoint(make_topology(kind, tmp_path_factory.mktemp(kind) / kind))


@pytest.fixture(scope="module")
def pipe(topology: Checkpoint) -> Any:
    made: Any = StableDiffusionPipeline.from_pretrained(
        topology.path, safety_checker=None, dtype=torch.float32, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    made.checkpoints_own = made.scheduler.config
    return made


@pytest.fixture(scope="module")
def models(topology: Checkpoint) -> dict[str, Model]:
    return {name: load(topology, Choice(name, "f32", threads=1)) for name in ("torch", "onnxruntime")}


@pytest.fixture(scope="module")
def drawn(models: dict[str, Model]) -> Callable[..., F32]:
    """Latents of a backend and a sampler, drawn once: a sampler's are its neighbour's counter-example."""

    @functools.cache
    def draw(backend: str, sampler: str, seed: int = SEED) -> F32:
        options = {"seed": seed, "steps": STEPS, "guidance": GUIDANCE, "sampler": sampler}
        return latents_of(models[backend], PROMPT, NEGATIVE, **options)

    return draw


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_and_picture_are_diffusers(
    sampler: str, pipe: Any, models: dict[str, Model], drawn: Callable[..., F32]
) -> None:
    scheduler, switches = THEIRS[sampler]
    pipe.scheduler = scheduler.from_config(pipe.checkpoints_own, **switches)
    with torch.inference_mode():
        latents = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        config = pipe.vae.config
        decoded = pipe.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample
    wanted, picture = latents[0].numpy(), to_pixels(decoded[0].numpy())
    assert picture.std() > 20, "flat"

    for name, model in models.items():
        got = drawn(name, sampler)
        error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        assert error < 1e-3, f"{name}: {error:.1e}"
        assert psnr(to_pixels(model.backend.decode(got)), picture) >= 45, name
    names = list(SAMPLERS)
    others = [drawn("torch", names[(names.index(sampler) + 1) % len(names)])]
    if sampler == names[0]:
        others.append(drawn("torch", sampler, SEED + 1))
    for other in others:
        assert np.abs(other - wanted).max() / np.abs(wanted).max() > 1e-3, "the check must be able to fail"
