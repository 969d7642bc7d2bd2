"""diffusers' own pipeline of a checkpoint, which is what ours are compared with: what it draws is drawn once."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.checkpoint.opened import Checkpoint
from tests.support.trajectories import THEIRS


class Diffusers:
    """`latents` and `generate` take the arguments of engines.generate's functions, all of them; nobody may change
    what they return."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        pipe: Any = StableDiffusionPipeline.from_pretrained(
            checkpoint.path, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        self._pipe, self._config = pipe, pipe.scheduler.config
        self.latents = functools.cache(self._latents)
        self.generate = functools.cache(self._generate)

    def _latents(self, prompt: str, negative_prompt: str, **options: Any) -> F32:
        """Return latents [C, h, w]."""
        scheduler, switches = THEIRS[options.pop("sampler")]
        self._pipe.scheduler = scheduler.from_config(self._config, **switches)
        generator = torch.Generator().manual_seed(options.pop("seed"))
        steps, guidance = options.pop("steps"), options.pop("guidance")
        drawn = self._pipe(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="latent",
            **options,
        )
        return drawn.images[0].numpy()

    def _generate(self, prompt: str, negative_prompt: str, **options: Any) -> NDArray[np.uint8]:
        """Return a picture [height, width, 3]."""
        vae, latents = self._pipe.vae, torch.from_numpy(self.latents(prompt, negative_prompt, **options))[None]
        with torch.inference_mode():
            decoded = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
        (picture,) = self._pipe.image_processor.postprocess(decoded, output_type="np")
        pixels = (picture * 255).round().astype(np.uint8)
        assert pixels.std() > 20, "a flat picture would prove nothing"
        return pixels
