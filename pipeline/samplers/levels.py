"""Noise levels: where on the schedule the samplers stop that think in noise over signal.

Rounded where diffusers rounds, to float32: x0 = (x - sigma out) / alpha divides by an alpha of 0.07 to 0.0002 at the
first step, so that the last bit of sigma is 1e-6 to 2e-4 of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import schedule
from pipeline.schedule import ScheduleSpec


@dataclass(frozen=True)
class Level:
    """Holds a noise level of the variance-preserving sample x = alpha x0 + sigma eps; each number is a float32's."""

    ratio: float  # sigma / alpha
    alpha: float
    sigma: float
    log_snr: float  # lambda = log(alpha / sigma)

    @classmethod
    def of(cls, ratio: float) -> Level:
        alpha, sigma = unit_variance(ratio)
        log_sigma = math.log(sigma) if sigma else -math.inf
        return cls(ratio, alpha, sigma, float(np.float32(math.log(alpha)) - np.float32(log_sigma)))


def unit_variance(ratio: float) -> tuple[float, float]:
    """Return alpha and sigma of the variance-preserving sample whose noise is `ratio` times its signal."""
    one, level = np.float32(1), np.float32(ratio)
    alpha = one / np.sqrt(level * level + one)
    return float(alpha), float(level * alpha)


def at(spec: ScheduleSpec, visited: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return noise over signal at timesteps, between whole ones interpolated: [steps]."""
    levels = schedule.sigmas(spec)
    return np.interp(visited, np.arange(len(levels)), levels)


def ended(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the levels of a run, [steps + 1]: the last is a clean picture's."""
    return np.append(levels, 0.0).astype(np.float32).astype(np.float64)


def karras(highest: float, lowest: float, steps: int) -> NDArray[np.float64]:
    """Return the levels of Karras et al. 2022, "Elucidating the Design Space", eq. 5 with rho = 7: [steps]."""
    first, last = highest ** (1 / 7), lowest ** (1 / 7)
    return (first + np.linspace(0, 1, steps) * (last - first)) ** 7


def timesteps_of(spec: ScheduleSpec, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert `at`, linearly in the logarithm of the level: fractional timesteps."""
    known, wanted = np.log(schedule.sigmas(spec).astype(np.float32)), np.log(levels)
    low = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    part = np.clip((known[low] - wanted) / (known[low] - known[low + 1]), 0, 1)
    return (1 - part) * low + part * (low + 1)
