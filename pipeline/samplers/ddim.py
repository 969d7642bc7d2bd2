"""DDIM and DDPM: from x0 and noise to the sample of an earlier timestep."""

from __future__ import annotations

import itertools

import numpy as np

from pipeline import schedule
from pipeline.samplers.table import NOISE, Row, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec


def ddim(spec: ScheduleSpec, steps: int) -> Table:
    """Make DDIM's table: Song et al. 2020, "Denoising Diffusion Implicit Models", eq. 12 with sigma_t = 0."""
    cumulative = schedule.alphas_cumprod(spec)
    visited = np.round(schedule.timesteps(spec, steps, spacing="leading"))
    levels = [signal_and_noise(float(cumulative[t])) for t in visited.astype(int)]
    matrices = []
    for t, level in zip(visited, levels, strict=True):
        x0, eps = predictions(spec, *level)
        matrices.append(matrix(moved(kept_before(spec, int(t), steps, to_one=True), x0, eps), x0))
    return filled(matrices, visited, levels)


def ddpm(spec: ScheduleSpec, steps: int) -> Table:
    """Make DDPM's table: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 6 and 7, over its timesteps.

    The variance is the smaller of the paper's two (diffusers: fixed_small). diffusers clamps the last one, which is
    zero, to 1e-20; here it is zero.
    """
    cumulative = schedule.alphas_cumprod(spec)
    visited = np.round(schedule.timesteps(spec, steps, spacing="leading"))
    one, kept = np.float32(1), cumulative[visited.astype(int)].astype(np.float32)  # rounded as in diffusers
    matrices = []
    for now, before in itertools.pairwise([*kept, np.float32(1)]):
        x0, _ = predictions(spec, *signal_and_noise(float(now)))
        alpha, noise, noise_before = now / before, one - now, one - before
        mean = float(np.sqrt(before) * (one - alpha) / noise) * x0 + float(np.sqrt(alpha) * noise_before / noise) * X
        matrices.append(matrix(mean + float(np.sqrt(noise_before / noise * (one - alpha))) * NOISE, x0))
    return filled(matrices, visited, [signal_and_noise(float(now)) for now in kept], noisy=True)


def kept_before(spec: ScheduleSpec, t: int, steps: int, *, to_one: bool) -> float:
    """Return alphas_cumprod one step's stride before timestep `t`, and past the schedule's start its final value.

    `to_one` holds where the spec does not say which value that is.
    """
    cumulative, previous = schedule.alphas_cumprod(spec), t - spec.train_steps // steps
    if previous < 0:
        return 1.0 if (to_one if spec.set_alpha_to_one is None else spec.set_alpha_to_one) else float(cumulative[0])
    return float(cumulative[previous])


def moved(before: float, x0: Row, eps: Row) -> Row:
    """Return the sample of x0 and eps where alphas_cumprod is `before`."""
    alpha, sigma = signal_and_noise(before)
    return alpha * x0 + sigma * eps


def signal_and_noise(cumulative: float) -> tuple[float, float]:
    """Return alpha and sigma of the sample, rounded to float32 as diffusers has them."""
    kept = np.float32(cumulative)
    return float(np.sqrt(kept)), float(np.sqrt(np.float32(1) - kept))
