"""The training schedule, and which of its timesteps an inference run visits.

Spacings are those of Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest


@dataclass(frozen=True)
class ScheduleSpec:
    """Describes the training schedule, and how inference steps are spread over it."""

    train_steps: int
    beta_start: float
    beta_end: float
    beta_schedule: str  # "scaled_linear", "linear" or "squaredcos_cap_v2"
    prediction: str  # "epsilon", "v_prediction" or "sample"
    spacing: str | None  # "leading", "trailing" or "linspace"; None: each sampler has its own
    steps_offset: int
    set_alpha_to_one: bool | None  # past the schedule's start; None: each sampler has its own
    rescale_betas_zero_snr: bool = False  # the last timestep keeps no signal


@functools.lru_cache(maxsize=16)
def alphas_cumprod(spec: ScheduleSpec) -> NDArray[np.float64]:
    """Return the schedule's alphas_cumprod, float64 [train_steps], but with the float32 values that diffusers has.

    Its float32 rounding moves a picture by more than 1e-5 at one step, so it is part of the model. Betas are a
    float32 linspace; the product accumulates in float64 and each term is rounded, as torch.cumprod does.
    """
    if spec.beta_schedule == "scaled_linear":
        betas = _linspace(spec.beta_start**0.5, spec.beta_end**0.5, spec.train_steps) ** 2
    elif spec.beta_schedule == "squaredcos_cap_v2":
        betas = _cosine(spec.train_steps)
    else:
        betas = _linspace(spec.beta_start, spec.beta_end, spec.train_steps)
    if spec.rescale_betas_zero_snr:
        betas = _without_last_signal(betas)
    return _kept(betas).astype(np.float64)


def _kept(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product of 1 - beta so far."""
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def _without_last_signal(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rescale by Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1."""
    signal = np.sqrt(_kept(betas))
    first, last = signal[0], signal[-1]
    signal = (signal - last) * (first / (first - last))
    kept = signal**2
    return np.float32(1) - np.append(kept[:1], kept[1:] / kept[:-1])


def _cosine(count: int) -> NDArray[np.float32]:
    """Return the betas of Nichol & Dhariwal 2021, eq. 17, each at most 0.999.

    The paper is "Improved Denoising Diffusion Probabilistic Models".
    """
    kept = [math.cos((t / count + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(count + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(kept)], np.float32)


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """Repeat torch.linspace in float32: counted from the nearer end, one fused multiply-add (one rounding) each."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    rising = float(first) + step * index
    falling = float(last) - step * (count - 1 - index)
    return np.where(index < max(count // 2, 1), rising, falling).astype(np.float32)


def timesteps(spec: ScheduleSpec, steps: int, *, spacing: str, intervals: int | None = None) -> NDArray[np.float64]:
    """Return the timesteps of a run, falling: float64 [steps], whole numbers except for a linspace.

    `spacing` holds where the spec names none. `intervals` is how many parts "leading" and "linspace" cut the
    schedule into: `steps` (DDIM, Euler), or `steps + 1` as DPM-Solver does, whose last part ends at the clean
    picture. Errors: InvalidRequest for more steps than the schedule has room for.
    """
    spacing = spec.spacing or spacing
    intervals = intervals or steps
    last = spec.train_steps - 1
    room = InvalidRequest(f"steps is {steps}; the model's {spec.train_steps} timesteps have no room for them", "steps")
    if intervals > spec.train_steps:
        raise room
    if spacing == "leading":
        visited = np.arange(intervals - steps, intervals, dtype=np.float64)[::-1]
        visited = visited * (spec.train_steps // intervals) + spec.steps_offset
    elif spacing == "trailing":
        visited = np.round(np.arange(spec.train_steps, 0, -spec.train_steps / steps, dtype=np.float64))[:steps] - 1
    else:
        visited = np.linspace(0, last, intervals, dtype=np.float64)[::-1][:steps]
    if visited[0] > last:  # by the offset
        raise room
    return visited


def sigmas(spec: ScheduleSpec) -> NDArray[np.float64]:
    """Return noise over signal of each training step, in float32 as diffusers has it: float64 [train_steps].

    Where no signal is left diffusers keeps 2**-24 of its variance, so that this is finite: 4096.
    """
    alphas = alphas_cumprod(spec).astype(np.float32)
    if spec.rescale_betas_zero_snr:
        alphas[-1] = 2**-24
    return (((1 - alphas) / alphas) ** np.float32(0.5)).astype(np.float64)
