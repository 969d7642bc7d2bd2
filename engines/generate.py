"""Prompt to picture, one at a time: the first file to read, and the oracle of every test.

The server makes the same picture, bit for bit, whatever else it is doing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.model import Model
from pipeline.arrays import F32, to_pixels
from pipeline.conditions.interval import WHOLE, Interval
from pipeline.conditions.mask import Inpaint
from pipeline.conditions.original import STRENGTH, Original, beginning, encoded, steps_skipped
from pipeline.conditions.sizes import AS_IT_IS, Sizes
from pipeline.conditions.style import Style
from pipeline.conditions.text import encoded_prompt
from pipeline.loras.lora import Lora
from pipeline.prompt import read_prompts
from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, STATE, table
from pipeline.update import advance, guide, keep


def generate(model: Model, prompt: str, negative_prompt: str = "", **options: Any) -> NDArray[np.uint8]:
    """Make a picture, uint8 [height, width, 3]; `options` are those of `latents_of`."""
    pixels = to_pixels(model.backend.decode(latents_of(model, prompt, negative_prompt, **options)))
    original: Original | None = options.get("original")
    return pixels if original is None else original.over(pixels)


def latents_of(
    model: Model,
    prompt: str,
    negative_prompt: str = "",
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    width: int | None = None,
    height: int | None = None,
    long_prompt: bool = False,
    prompt_weights: bool = False,
    clip_skip: int = 0,
    interval: Interval = WHOLE,
    original: Original | None = None,
    strength: float = STRENGTH,
    begin: int = 0,
    x: F32 | None = None,
    inpaint: Inpaint | None = None,
    style: Style | None = None,
    lora: Lora | None = None,
    sizes: Sizes = AS_IT_IS,
) -> F32:
    """Return the denoised latents [C, h, w]. An absent option has the model's default; guidance <= 1 is unguided.

    `interval`: the steps that are guided. `original`: the picture to begin with, of the size of the picture, of whose
    steps `strength` leaves the last. Without one, `begin`: the steps that are not made; `x`, `inpaint`, `style`,
    `lora`: Sitting's. `sizes`: what SDXL's UNet is told of them.
    """
    spec, backend, default = model.spec, model.backend, model.spec.defaults
    steps = default.steps if steps is None else steps
    guidance = default.guidance if guidance is None else guidance
    width, height = width or default.width, height or default.height
    begin = begin if original is None else steps_skipped(steps, strength)
    run = table(spec.schedule, sampler or default.sampler, steps, begin)
    guided = guidance > 1 and not spec.unet.guidance_width
    texts = [prompt, negative_prompt] if guided else [prompt]
    prompts = read_prompts(
        model.tokenizer,
        texts,
        long=long_prompt,
        weighted=prompt_weights,
        skip=clip_skip,
        zero_negative=spec.zero_negative,
    )

    denoiser = backend.denoiser(
        width, height, rows=len(prompts), chunks=prompts[0].chunks, rank=lora.rank if lora else 0
    )
    encode = partial(backend.encode_text, lora=lora)
    for row, text in enumerate([encoded_prompt(prompt, encode) for prompt in prompts]):
        denoiser.contexts[row] = text.context
        denoiser.put(row, text.beside | sizes.inputs(spec.unet, width, height))
        denoiser.put_style(row, style, row)
        denoiser.put_lora(row, lora)
    denoiser.guidance[:] = guidance

    source = None if original is None else encoded(original, spec, backend.moments)
    begun = beginning(spec, run, seed, (width, height), source)
    (first, *draws), inpaint = begun.noise, inpaint or begun.inpaint
    x = begun.x if x is None else x
    terms = np.zeros((STATE + 2, *first.shape), np.float32)  # x, h1..h4, out, noise
    terms[0] = first * np.float32(run.initial_scale) if x is None else x
    samples = denoiser.samples[:, : len(first)]
    if begun.seen is not None:
        denoiser.samples[:, len(first) :] = begun.seen
    inside = interval.inside(run) & guided  # which evaluations take two rows
    levels = run.levels[1:].astype(np.float32)
    evaluations = zip(run.sums(), run.timesteps, run.input_scales, run.noise, levels, inside, strict=True)
    for sums, t, scale, draw, level, twice in evaluations:
        samples[:] = terms[0] * np.float32(scale)
        denoiser.timesteps[:] = t
        denoiser.run([0, 1] if twice else [0])
        out = denoiser.outputs
        terms[OUT_COLUMN] = guide(out[0], out[1], guidance) if twice else out[0]
        if draw >= 0:
            terms[NOISE_COLUMN] = draws[draw]
        advance(terms, sums)
        if inpaint is not None:
            terms[0] = keep(terms[0], inpaint, first, level)
    return terms[0]
