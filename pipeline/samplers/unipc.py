"""UniPC: a predictor of second order, and a corrector that comes with the next evaluation."""

from __future__ import annotations

import math

import numpy as np

from pipeline.samplers.dpmpp import multistep_course
from pipeline.samplers.levels import Level
from pipeline.samplers.table import H1, H2, H3, Row, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec


def unipc(spec: ScheduleSpec, steps: int, begin: int = 0, *, karras: bool = False) -> Table:
    """Make the table of Zhao et al. 2023, "UniPC", algorithms 1 (UniC) and 2 (UniP) predicting data, B(h) = e^h - 1.

    B is diffusers' bh2. Predictor and corrector are of second order: diffusers' defaults.
    h1 and h2 are the last x0s, h3 the last corrected x. x0 is predicted from x as it was before its correction. The
    first step, which is step `begin`, has no history, the last ends at sigma = 0: both are of first order.
    """
    visited, course = multistep_course(spec, steps, karras=karras)
    matrices = []
    for i in range(begin, steps):
        x0, _ = predictions(spec, course[i].alpha, course[i].sigma)
        corrected = _corrected(course, i, _order_at(i - 1, begin, steps), x0) if i > begin else X
        x = _predicted(course, i, _order_at(i, begin, steps), corrected, x0)
        matrices.append(matrix(x, x0, h1=x0, h2=H1, h3=corrected))
    met = [(level.alpha, level.sigma) for level in course[begin:-1]]
    return filled(matrices, visited[begin:], met, whole=not begin)


def _order_at(i: int, begin: int, steps: int) -> int:
    return 1 if i in (begin, steps - 1) else 2


def _predicted(course: list[Level], i: int, order: int, x: Row, x0: Row) -> Row:
    """Predict by UniP from level i to i + 1, its rho 1/2 at second order; h1 is x0 one step before."""
    now, then = course[i], course[i + 1]
    h = then.log_snr - now.log_snr
    b = math.expm1(-h)
    target = x0
    if order == 2:
        ratio = (course[i - 1].log_snr - now.log_snr) / h
        target = x0 + 0.5 / ratio * (H1 - x0)
    return then.sigma / now.sigma * x - then.alpha * b * target


def _corrected(course: list[Level], i: int, order: int, x0: Row) -> Row:
    """Correct by UniC: x at level i once more, from h3 at level i - 1, now that x0 at level i is known."""
    last, now = course[i - 1], course[i]
    h = now.log_snr - last.log_snr
    b = math.expm1(-h)
    if order == 1:
        target = H1 + 0.5 * (x0 - H1)
    else:
        ratio = (course[i - 2].log_snr - last.log_snr) / h
        first = b / -h - 1  # the right side of the paper's condition on rho
        second = first / -h - 0.5
        weights = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [first / b, 2 * second / b])
        target = H1 + weights[0] / ratio * (H2 - H1) + weights[1] * (x0 - H1)
    return now.sigma / last.sigma * H3 - now.alpha * b * target
