"""Euler, Euler ancestral and Heun: x is the picture plus sigma times noise; the UNet sees it at unit variance."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from pipeline import schedule
from pipeline.samplers import levels
from pipeline.samplers.table import H1, H2, NOISE, Matrix, Row, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec


def euler(spec: ScheduleSpec, steps: int, *, karras: bool = False) -> Table:
    """Make Euler's table: Karras et al. 2022, "Elucidating the Design Space", algorithm 1, without a second order."""
    visited, sigmas = _course(spec, steps, karras=karras)
    matrices = []
    for sigma, following in itertools.pairwise(sigmas):
        x0, slope = _slope(spec, sigma)
        matrices.append(matrix(X + _move(sigma, following) * slope, x0))
    return _filled(spec, matrices, visited, sigmas[:-1])


def euler_a(spec: ScheduleSpec, steps: int) -> Table:
    """Make the table of Song et al. 2020, "Score-Based Generative Modeling", eq. 47 (its reverse step).

    Split as in k-diffusion: a step of Euler to sigma_down, then noise up to the next level. In float32, as diffusers
    has it: where sigma falls steeply, sigma_down is the difference of two numbers whose first digits agree.
    """
    visited, sigmas = _course(spec, steps, karras=False)
    matrices = []
    for sigma, following in itertools.pairwise(sigmas):
        down, up = _ancestral(np.float32(sigma), np.float32(following))
        x0, slope = _slope(spec, sigma)
        matrices.append(matrix(X + _move(sigma, down) * slope + up * NOISE, x0))
    return _filled(spec, matrices, visited, sigmas[:-1], noisy=True)


def heun(spec: ScheduleSpec, steps: int, *, karras: bool = False) -> Table:
    """Make Heun's table: Karras et al. 2022, "Elucidating the Design Space", algorithm 1 without noise.

    h1 is the slope, h2 is x.
    Each step but the last, which ends at sigma = 0, takes a second evaluation where its first one arrives.
    """
    visited, sigmas = _course(spec, steps, karras=karras)
    matrices: list[Matrix] = []
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0, slope = _slope(spec, sigma)
        move = _move(sigma, following)
        arrived = X + move * slope
        if i == steps - 1:
            matrices.append(matrix(arrived, x0))
            break
        matrices.append(matrix(arrived, x0, h1=slope, h2=X))
        x0, slope = _slope(spec, following)
        matrices.append(matrix(H2 + 0.5 * move * (H1 + slope), x0))
    twice = np.repeat(np.arange(steps), 2)[1:]  # 0, 1, 1, 2, 2, ..: which level an evaluation is at
    done = np.append(twice[:-1], steps) if steps > 1 else np.array([1])
    return _filled(spec, matrices, visited[twice], sigmas[twice], steps_done=done)


def _course(spec: ScheduleSpec, steps: int, *, karras: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the timesteps of a run [steps] and its noise levels [steps + 1]."""
    visited = _float32(schedule.timesteps(spec, steps, spacing="linspace"))
    met = levels.at(spec, visited)
    if karras:
        met = levels.karras(met[0], met[-1], steps)
        visited = _float32(levels.timesteps_of(spec, met))
    return visited, levels.ended(met)


def _slope(spec: ScheduleSpec, sigma: float) -> tuple[Row, Row]:
    """Return x0, and dx / dsigma = (x - x0) / sigma."""
    scale, noise = levels.unit_variance(sigma)  # x times `scale` is the variance-preserving sample
    x0, _ = predictions(spec, scale, noise, x=scale * X)
    return x0, (X - x0) / sigma


def _ancestral(sigma: np.float32, following: np.float32) -> tuple[float, float]:
    """Return sigma_down and sigma_up. Where rounding makes up exceed the next, diffusers has NaN; here down is 0."""
    up = np.sqrt(following * following * (sigma * sigma - following * following) / (sigma * sigma))
    down = np.sqrt(np.maximum(following * following - up * up, np.float32(0)))
    return float(down), float(up)


def _filled(
    spec: ScheduleSpec,
    matrices: list[Matrix],
    visited: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    *,
    noisy: bool = False,
    steps_done: NDArray[np.int64] | None = None,
) -> Table:
    scales = np.array([levels.unit_variance(sigma)[0] for sigma in sigmas])
    # Leading timesteps stop short of the noisiest one, where the picture still counts: diffusers' init_noise_sigma.
    first = float(np.hypot(sigmas[0], 1)) if spec.spacing == "leading" else float(sigmas[0])
    return filled(
        matrices,
        visited,
        [(1.0, float(sigma)) for sigma in sigmas],
        input_scales=scales,
        steps_done=steps_done,
        noisy=noisy,
        initial_scale=first,
    )


def _move(start: float, end: float) -> float:
    """Return end - start, rounded as in diffusers: from a sigma of 4096 (rescale_betas_zero_snr) down this is 2e-4."""
    return float(np.float32(end - start))


def _float32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)
