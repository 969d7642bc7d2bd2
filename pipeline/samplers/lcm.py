"""LCM: each step predicts the picture and, but for the last, takes it back to an earlier noise level."""

from __future__ import annotations

import math

import numpy as np

from pipeline import schedule
from pipeline.errors import InvalidRequest
from pipeline.samplers.ddim import moved, signal_and_noise
from pipeline.samplers.table import NOISE, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec

DISTILLED_STEPS = 50  # of the schedule that models are distilled on; a run visits some of its timesteps
_TIMESTEP_SCALING, _SIGMA_DATA = 10.0, 0.5


def lcm(spec: ScheduleSpec, steps: int) -> Table:
    """Make the table of Luo et al. 2023, "Latent Consistency Models", algorithm 3; x0 is its f(x, t).

    c_skip and c_out are those of eq. 9.
    The timesteps are the distillation's: a checkpoint's spacing and offset do not count.
    """
    cumulative, stride = schedule.alphas_cumprod(spec), spec.train_steps // DISTILLED_STEPS
    if stride < 1:
        raise InvalidRequest(
            f"sampler lcm needs a model of at least {DISTILLED_STEPS} timesteps, not {spec.train_steps}", "sampler"
        )
    known = np.arange(DISTILLED_STEPS, 0, -1) * stride - 1
    visited = known[np.floor(np.linspace(0, DISTILLED_STEPS, steps, endpoint=False)).astype(int)]
    levels = [signal_and_noise(float(cumulative[t])) for t in visited]
    matrices = []
    for i, t in enumerate(visited):
        x0, _ = predictions(spec, *levels[i])
        scaled = _TIMESTEP_SCALING * float(t)
        norm = math.hypot(scaled, _SIGMA_DATA)
        picture = scaled / norm * x0 + (_SIGMA_DATA / norm) ** 2 * X
        last = i == steps - 1
        x = picture if last else moved(float(cumulative[visited[i + 1]]), picture, NOISE)
        matrices.append(matrix(x, picture))
    return filled(matrices, visited.astype(np.float64), levels, noisy=True)
