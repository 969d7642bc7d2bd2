"""Draws pictures with networks in training, by the tables that serving has (pipeline/samplers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.clip import ClipText
from model.unet import Unet
from model.vae import VaeDecoder
from pipeline.noise import standard_normal
from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, STATE, table
from training.batches import Captions
from training.networks import SCHEDULE
from training.recipe import EvaluateRecipe

_AT_ONCE = 32


@dataclass(frozen=True)
class Drawing:
    seeds: Sequence[int] | int  # one a picture, or the first of successive ones
    steps: int
    guidance: float
    sampler: str

    @classmethod
    def of(cls, recipe: EvaluateRecipe, seeds: Sequence[int] | int) -> Drawing:
        return cls(seeds, recipe.steps, recipe.guidance, recipe.sampler)

    def seed(self, index: int) -> int:
        return self.seeds + index if isinstance(self.seeds, int) else self.seeds[index]


@torch.no_grad()
def draw(
    unet: Unet, text: ClipText, decoder: VaeDecoder, scale: float, captions: Captions, prompts: Sequence[str],
    drawing: Drawing, styles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Draw a picture for every prompt: [n, 3, side, side] in about -1..1, as latentd serves it.

    `scale` is that of the latents, with a decoder that takes unscaled ones. `styles`: tokens of style pictures
    [n, tokens, D], and those of no picture [tokens, D].
    """
    pictures = []
    for begin in range(0, len(prompts), _AT_ONCE):
        some = range(begin, min(len(prompts), begin + _AT_ONCE))
        style = None if styles is None else (styles[0][begin : some.stop], styles[1])
        latents = _latents(
            unet, text, captions, [prompts[i] for i in some], [drawing.seed(i) for i in some], drawing, style
        )
        pictures.append(decoder(latents / scale))
    return torch.cat(pictures)


def _latents(
    unet: Unet, text: ClipText, captions: Captions, prompts: list[str], seeds: list[int], drawing: Drawing,
    styles: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    device, spec, count = unet.conv_in.weight.device, unet.spec, len(prompts)
    shape = (spec.in_channels, spec.sample_size, spec.sample_size)
    run = table(SCHEDULE, drawing.sampler, drawing.steps)
    noise = np.stack([standard_normal(seed, shape, 1 + run.draws) for seed in seeds])
    drawn = torch.from_numpy(noise).to(device)  # [n, 1 + draws, C, h, w]
    ids = captions([*prompts, *("" for _ in prompts)]).to(device)
    kv_style = () if styles is None else _rows(styles)
    context = unet.context_kv(text(ids)[0], *kv_style)
    terms = torch.zeros((STATE + 2, count, *shape), device=device)
    terms[0] = drawn[:, 0] * run.initial_scale
    for matrix, t, input_scale, use in zip(run.matrices, run.timesteps, run.input_scales, run.noise, strict=True):
        sample = (terms[0] * float(input_scale)).repeat(2, 1, 1, 1)
        shifts = unet.time_shifts(torch.full((2 * count,), float(t), device=device))
        positive, negative = unet.denoise(sample, shifts, context).chunk(2)
        terms[OUT_COLUMN] = negative + drawing.guidance * (positive - negative) if drawing.guidance > 1 else positive
        if use >= 0:
            terms[NOISE_COLUMN] = drawn[:, 1 + use]
        rows = torch.from_numpy(matrix[:STATE].astype(np.float32)).to(device)
        terms[:STATE] = torch.einsum("ij,j...->i...", rows, terms)
    return terms[0]


def _rows(styles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    tokens, empty = styles
    return torch.cat((tokens, empty.expand_as(tokens))), tokens.new_ones(2 * len(tokens))
