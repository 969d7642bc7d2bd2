"""diffusers' pipelines that begin with a picture, as what ours are compared with."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from numpy.typing import NDArray
from PIL import Image

from engines.preview import synthetic_picture
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import Checkpoint
from pipeline.conditions.original import Original
from tests.support.trajectories import THEIRS

Pixels = NDArray[np.uint8]


@functools.cache
def original_of(width: int, height: int, *, masked: bool = False, seed: int = 1) -> Original:
    """A picture of sharp and smooth parts; `masked`: an ellipse that touches no edge is redrawn."""
    ground = 12 * seed - 6  # of those with a smooth field of colour: what is drawn over white may be white too
    pixels = to_pixels(synthetic_picture(ground, max(width, height))[:, :height, :width])
    if not masked:
        return Original(pixels)
    y, x = np.ogrid[:height, :width]
    return Original(pixels, (x / width - 0.55) ** 2 + (y / height - 0.4) ** 2 < 0.09)


class Begun:
    """diffusers' img2img, or its inpainting where the original has a mask."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @functools.cache  # noqa: B019 (as long as the module's tests)
    def _pipe(self, masked: bool) -> Any:
        kind = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
        pipe: Any = kind.from_pretrained(
            self._checkpoint.path, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe, pipe.scheduler.config

    def generate(self, prompt: str, negative_prompt: str, original: Original, *, batch: int = 1, **options: Any) -> Any:
        """The last of `batch` pictures [height, width, 3], whose seed is the first one's and `batch` - 1."""
        pipe, config = self._pipe(original.mask is not None)
        scheduler, switches = THEIRS[options["sampler"]]
        pipe.scheduler = scheduler.from_config(config, **switches)
        picture, more = Image.fromarray(original.pixels), {}
        if original.mask is not None:
            height, width = original.mask.shape
            more = {"mask_image": [Image.fromarray(original.mask)] * batch, "height": height, "width": width}
        drawn = pipe(
            [prompt] * batch,
            negative_prompt=[negative_prompt] * batch,
            image=[picture] * batch,
            strength=options["strength"],
            num_inference_steps=options["steps"],
            guidance_scale=options["guidance"],
            generator=[torch.Generator().manual_seed(options["seed"] + k) for k in range(batch)],
            output_type="np",
            **more,
        )
        return original.over((drawn.images[-1] * 255).round().astype(np.uint8))
