"""DPM-Solver++: multistep solvers of the equation of x0, with exact exponentials between two noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline import schedule
from pipeline.samplers import levels
from pipeline.samplers.levels import Level
from pipeline.samplers.table import H1, H2, NOISE, Row, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec

Timesteps = NDArray[np.float64]  # [steps]

_FEW = 15  # steps: diffusers lowers the order before the end of shorter runs (lower_order_final)


def dpmpp(
    spec: ScheduleSpec, steps: int, begin: int = 0, *, order: int, stochastic: bool = False, karras: bool = False
) -> Table:
    """Make the table of Lu et al. 2022, "DPM-Solver++", algorithm 2 (2M, midpoint) and section 5 (SDE-DPM-Solver++).

    h1 and h2 are the last x0s. The third order is that of k-diffusion's sample_dpmpp_3m_sde, but for a sign (see
    `_third`). The first step, which is step `begin`, has no history and the last ends at sigma = 0: both are of first
    order.
    """
    # diffusers rounds the timesteps of Karras levels, but cuts them for this one schedule.
    whole = np.trunc if spec.beta_schedule == "squaredcos_cap_v2" else np.round
    visited, course = multistep_course(spec, steps, karras=karras, whole=whole)
    matrices = []
    for i in range(begin, steps):
        x0, _ = predictions(spec, course[i].alpha, course[i].sigma)
        x = _stepped(course, i, _order_at(i, begin, steps, order), x0, stochastic)
        matrices.append(matrix(x, x0, h1=x0, h2=H1) if order == 3 else matrix(x, x0, h1=x0))
    met = [(level.alpha, level.sigma) for level in course[begin:-1]]
    return filled(matrices, visited[begin:], met, noisy=stochastic, whole=not begin)


def multistep_course(
    spec: ScheduleSpec, steps: int, *, karras: bool, whole: Callable[[Timesteps], Timesteps] = np.round
) -> tuple[Timesteps, list[Level]]:
    """Return a run's timesteps [steps] and noise levels [steps + 1]; Karras levels span the whole schedule."""
    if karras:
        known = schedule.sigmas(spec)
        met = levels.karras(known[-1], known[0], steps)
        visited = whole(levels.timesteps_of(spec, met))
    else:
        visited = np.round(schedule.timesteps(spec, steps, spacing="linspace", intervals=steps + 1))
        met = levels.at(spec, visited)
    return visited, [Level.of(level) for level in levels.ended(met)]


def _order_at(i: int, begin: int, steps: int, order: int) -> int:
    if i in (begin, steps - 1):
        return 1
    return 2 if i == begin + 1 or (i == steps - 2 and steps < _FEW) else order


def _stepped(course: list[Level], i: int, order: int, x0: Row, stochastic: bool) -> Row:
    """Return the step from level i to i + 1. The SDE removes twice the noise and puts half of it back."""
    now, then = course[i], course[i + 1]
    h = then.log_snr - now.log_snr
    span = 2 * h if stochastic else h
    x = then.sigma / now.sigma * (math.exp(-h) if stochastic else 1.0) * X
    if stochastic:
        x = x + then.sigma * math.sqrt(-math.expm1(-span)) * NOISE
    gain = -math.expm1(-span) * then.alpha
    if order == 1:
        return x + gain * x0
    before = now.log_snr - course[i - 1].log_snr
    first = h / before * (x0 - H1)
    if order == 2:
        return x + gain * (x0 + 0.5 * first)
    earlier = course[i - 1].log_snr - course[i - 2].log_snr
    return x + gain * x0 + then.alpha * _third(span, before / h, earlier / h, first, h / earlier * (H1 - H2))


def _third(span: float, r0: float, r1: float, first: Row, second: Row) -> Row:
    """Return what the first and second derivatives of x0 add, from its two last differences.

    k-diffusion and the exponential integral have 0.5 - phi here. diffusers 0.42.1 has -0.5 - phi in its stochastic
    third order (scheduling_dpmsolver_multistep.py), and its pictures are what this is compared with.
    """
    curvature = (first - second) / (r0 + r1)
    slope = first + r0 * curvature
    s = np.float32(span)  # as diffusers: 1e-5 of a short step's curvature is rounding
    gone = np.float32(1) - np.float32(math.exp(-span))
    return float(gone / -s + 1) * slope + float((gone - s) / s**2 - np.float32(0.5)) * curvature
