"""diffusers' pipelines of SDXL, as what ours are compared with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from numpy.typing import NDArray

from engines.cpu.torch import TorchBackend
from engines.generate import generate
from engines.model import Model
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.tokenizer import tokenizer_of
from tests.support.trajectories import THEIRS

EXACT = 45.0  # dB; measured 80 and more
ASKED: dict[str, Any] = {"prompt": "a red apple!", "seed": 3, "steps": 3, "guidance": 5.0, "sampler": "ddim"}
Pixels = NDArray[np.uint8]


def in_torch(path: Path) -> Model:
    checkpoint = open_checkpoint(path)
    tokenizer = tokenizer_of(checkpoint.source, checkpoint.spec)
    return Model(checkpoint, tokenizer, TorchBackend(checkpoint, threads=1))


@functools.cache
def pipeline_of(folder: Path, kind: Any = StableDiffusionXLPipeline) -> Any:
    pipe = kind.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.scheduler.config


def theirs(folder: Path, kind: Any = StableDiffusionXLPipeline, **asked: Any) -> Pixels:
    asked = ASKED | asked
    pipe, config = pipeline_of(folder, kind)
    scheduler, switches = THEIRS[asked.pop("sampler")]
    pipe.scheduler = scheduler.from_config(config, **switches)
    generator = torch.Generator().manual_seed(asked.pop("seed"))
    steps, guidance = asked.pop("steps"), asked.pop("guidance")
    drawn = pipe(num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="np", **asked)
    pixels = (drawn.images[0] * 255).round().astype(np.uint8)
    assert pixels.std() > 20, "a flat picture would prove nothing"
    return pixels


def ours(model: Model, **asked: Any) -> Pixels:
    return generate(model, **ASKED | asked)
