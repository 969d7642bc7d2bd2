"""Pictures as conditions: what a request begins with, and what of it is redrawn.

Everything is drawn from the picture's own generator in the order in which diffusers' pipelines draw it: the posterior
of the picture, the noise, the posterior of the masked picture, then a stochastic sampler's noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, Pixels
from pipeline.conditions.mask import Inpaint
from pipeline.noise import standard_normal
from pipeline.samplers import Table
from pipeline.spec import Spec

Mask = NDArray[np.bool_]

STRENGTH = 0.8  # diffusers' default


def steps_skipped(steps: int, strength: float) -> int:
    """Return how many of so many steps are not made for a picture of this strength, 0..1, as diffusers counts them.

    All of them where the strength is too small for a single one.
    """
    return steps - min(int(steps * strength), steps)


@dataclass(frozen=True, eq=False)
class Original:
    """Holds the picture that a request begins with, and which of its pixels are redrawn."""

    pixels: Pixels  # [H, W, 3]
    mask: Mask | None = None  # [H, W], True: redrawn; None: all of them

    def over(self, pixels: Pixels) -> Pixels:
        """Return a finished picture with the original, to the bit, wherever it is not redrawn."""
        return pixels if self.mask is None else np.where(self.mask[..., None], pixels, self.pixels)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Holds an original as the networks know it: posteriors of its latents, before anything was drawn from them."""

    original: Original
    moments: F32  # [2C, h, w]: mean and log-variance, unscaled
    masked: F32 | None = None  # [2C, h, w]: of the original, grey where it is redrawn; of a UNet that sees it


@dataclass(frozen=True, eq=False)
class Beginning:
    """Holds what a picture's seat gets of its seed and of its original: fields of engines.seat.Sitting."""

    noise: F32  # [1 + draws, C, h, w]
    x: F32 | None = None
    inpaint: Inpaint | None = None
    seen: F32 | None = None


def encoded(original: Original, spec: Spec, moments: Callable[[F32], F32]) -> Encoded:
    """Encode an original by `moments` (Backend.moments), once for a UNet of text to image, twice for one that inpaints.

    `moments` takes [3, H, W] in -1..1. Errors: its own.
    """
    picture = original.pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    masked = None
    if spec.inpaints:
        assert original.mask is not None
        masked = moments(np.where(original.mask, np.float32(0), picture))
    return Encoded(original, moments(picture), masked)


def beginning(spec: Spec, run: Table, seed: int, size: tuple[int, int], start: Encoded | None = None) -> Beginning:
    """Draw all that a picture of `size` (width, height in pixels) needs from its seed.

    Without `start` that is noise. A picture begins with its original, noised to the level of the run's first
    evaluation; with noise alone where a mask is given and the run is a whole one, as diffusers' inpainting does.
    """
    shape = spec.latent_shape(*size)
    if start is None:
        return Beginning(standard_normal(seed, shape, 1 + run.draws))
    mask = start.original.mask
    from_noise = mask is not None and run.whole
    before = 0 if spec.inpaints and from_noise else 1  # draws before the noise
    behind = 0 if mask is None else 1  # between it and the sampler's; of no use to a UNet that does not see the picture
    drawn = standard_normal(seed, shape, before + 1 + behind + run.draws)
    noise = np.concatenate([drawn[before : before + 1], drawn[before + 1 + behind :]])
    latents = _latents(spec, start.moments, drawn[0])
    alpha, sigma = run.levels[0].astype(np.float32)
    x = None if from_noise else alpha * latents + sigma * noise[0]
    if mask is None:
        return Beginning(noise, x)
    rows, columns = (np.arange(n) * spec.vae.factor for n in shape[1:])
    coarse = mask[np.ix_(rows, columns)].astype(np.float32)  # [h, w]: the upper left pixel of each, as diffusers has it
    if start.masked is None:
        return Beginning(noise, x, Inpaint(coarse, latents))
    return Beginning(noise, x, seen=np.concatenate([coarse[None], _latents(spec, start.masked, drawn[before + 1])]))


def _latents(spec: Spec, moments: F32, noise: F32) -> F32:
    """Sample a posterior, [2C, h, w], and scale it: [C, h, w] as the UNet knows latents."""
    mean, log_variance = np.split(moments, 2)
    sample = mean + np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20)) * noise
    return (sample - np.float32(spec.vae.shift_factor)) * np.float32(spec.vae.scaling_factor)
