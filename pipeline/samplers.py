"""Samplers as tables: every one is linear in what it remembers.

A seat remembers S = [x, h1, h2, h3, h4]. With `out`, the guided raw output of the UNet, one evaluation is

    [S_next, x0] = M . [S, out, noise]          M: 6 x 7

x0 is the predicted picture (previews show it). M depends only on the schedule, the sampler and the number of
steps, so it is made once a request on the host, in float64. Below, a quantity is its row: the seven
coefficients over (x, h1, h2, h3, h4, out, noise). Adding a sampler is adding a function that fills a table.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import schedule
from pipeline.errors import InvalidRequest
from pipeline.schedule import ScheduleSpec

Row = NDArray[np.float64]  # [7]

HISTORY = 4
STATE = 1 + HISTORY  # x and its history
OUT_COLUMN, NOISE_COLUMN = STATE, STATE + 1
X, H1, H2, H3, H4, OUT, NOISE = np.eye(STATE + 2)
_FORGET: Row = np.zeros(STATE + 2)


@dataclass(frozen=True)
class Table:
    """A run of one sampler. The first axis counts UNet evaluations."""

    matrices: NDArray[np.float64]  # [evaluations, 6, 7]
    timesteps: NDArray[np.float64]  # [evaluations]
    input_scales: NDArray[np.float64]  # [evaluations]: the UNet sees x times this
    steps_done: NDArray[np.int64]  # [evaluations]: steps finished after each evaluation
    initial_scale: float  # x starts as noise times this

    @property
    def evaluations(self) -> int:
        return len(self.timesteps)


@functools.lru_cache(maxsize=512)
def table(spec: ScheduleSpec, sampler: str, steps: int) -> Table:
    """The table of `sampler` (a key of SAMPLERS) for `steps` steps of a model with this schedule.

    Errors: InvalidRequest for an unknown sampler, or for more steps than the schedule has room for.
    """
    if sampler not in SAMPLERS:
        raise InvalidRequest(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    if steps < 1:
        raise InvalidRequest(f"steps is {steps}; it must be at least 1")
    return SAMPLERS[sampler](spec, steps)


def _ddim(spec: ScheduleSpec, steps: int) -> Table:
    """Song et al. 2020, "Denoising Diffusion Implicit Models", eq. 12 with sigma_t = 0."""
    cumulative = schedule.alphas_cumprod(spec)
    last = 1.0 if spec.set_alpha_to_one else float(cumulative[0])
    visited = np.round(schedule.timesteps(spec, steps, spacing="leading"))
    matrices = []
    for t in visited:
        previous = int(t) - spec.train_steps // steps
        before = float(cumulative[previous]) if previous >= 0 else last
        alpha, sigma = _signal_and_noise(float(cumulative[int(t)]))
        x0, eps = _predictions(spec, alpha, sigma)
        x = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
        matrices.append(_matrix(x, x0))
    return _one_evaluation_a_step(matrices, visited)


def _euler(spec: ScheduleSpec, steps: int) -> Table:
    """Karras et al. 2022, "Elucidating the Design Space", algorithm 1 without its second-order correction.

    x is the picture plus sigma times noise here, and the UNet sees it scaled to unit variance.
    """
    visited = schedule.timesteps(spec, steps, spacing="linspace")
    levels = _noise_levels(spec, visited)
    matrices = []
    for sigma, following in itertools.pairwise(levels):
        scale = 1 / math.hypot(sigma, 1)  # x scaled by it is the variance-preserving sample
        x0, _ = _predictions(spec, scale, sigma * scale, x=scale * X)
        slope = (X - x0) / sigma
        matrices.append(_matrix(X + (following - sigma) * slope, x0))
    # Leading timesteps stop short of the noisiest one, where the picture still counts: diffusers' init_noise_sigma.
    first = math.hypot(levels[0], 1) if spec.spacing == "leading" else levels[0]
    scales = 1 / np.hypot(levels[:-1], 1)
    return _one_evaluation_a_step(matrices, visited, input_scales=scales, initial_scale=float(first))


def _dpmpp_2m(spec: ScheduleSpec, steps: int) -> Table:
    """Lu et al. 2022, "DPM-Solver++", algorithm 2 (multistep, second order, midpoint); h1 is the last x0.

    The first step has no history and the last ends at sigma = 0: both are of first order.
    """
    visited = np.round(schedule.timesteps(spec, steps, spacing="linspace", intervals=steps + 1))
    levels = _noise_levels(spec, visited)
    logs = [-math.log(sigma) for sigma in levels[:-1]] + [math.inf]  # lambda = log(alpha / sigma)
    matrices = []
    for i in range(steps):
        alpha, sigma = _unit_variance(levels[i])
        alpha_next, sigma_next = _unit_variance(levels[i + 1])
        x0, _ = _predictions(spec, alpha, sigma)
        h = logs[i + 1] - logs[i]
        target = x0
        if 0 < i < steps - 1:
            target = x0 + 0.5 * h / (logs[i] - logs[i - 1]) * (x0 - H1)
        x = sigma_next / sigma * X - alpha_next * math.expm1(-h) * target
        matrices.append(_matrix(x, x0, h1=x0))
    return _one_evaluation_a_step(matrices, visited)


SAMPLERS: dict[str, Callable[[ScheduleSpec, int], Table]] = {"ddim": _ddim, "euler": _euler, "dpmpp_2m": _dpmpp_2m}


def _predictions(spec: ScheduleSpec, alpha: float, sigma: float, x: Row = X) -> tuple[Row, Row]:
    """x0 and noise as rows, where x = alpha x0 + sigma eps. v: Salimans & Ho 2022, appendix D."""
    if spec.prediction == "epsilon":
        return (x - sigma * OUT) / alpha, OUT
    return alpha * x - sigma * OUT, alpha * OUT + sigma * x


def _signal_and_noise(cumulative: float) -> tuple[float, float]:
    return math.sqrt(cumulative), math.sqrt(1 - cumulative)


def _unit_variance(level: float) -> tuple[float, float]:
    """alpha and sigma of the variance-preserving sample at noise over signal `level`."""
    alpha = 1 / math.hypot(level, 1)
    return alpha, level * alpha


def _noise_levels(spec: ScheduleSpec, visited: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise over signal at each visited timestep, then 0; rounded to float32 as diffusers keeps them."""
    levels = schedule.sigmas(spec)
    met = np.interp(visited, np.arange(len(levels)), levels)
    return np.append(met, 0.0).astype(np.float32).astype(np.float64)


def _matrix(x: Row, x0: Row, *, h1: Row = _FORGET, h2: Row = _FORGET, h3: Row = _FORGET, h4: Row = _FORGET) -> Row:
    return np.stack([x, h1, h2, h3, h4, x0])  # [6, 7]


def _one_evaluation_a_step(
    matrices: list[Row],
    visited: NDArray[np.float64],
    input_scales: NDArray[np.float64] | None = None,
    initial_scale: float = 1.0,
) -> Table:
    steps = len(matrices)
    scales = np.ones(steps) if input_scales is None else input_scales
    return Table(np.stack(matrices), visited, scales, np.arange(1, steps + 1), initial_scale)
