"""PNDM, its linear multistep part (PLMS), which Stable Diffusion 1 was published with."""

from __future__ import annotations

import numpy as np

from pipeline import schedule
from pipeline.errors import InvalidRequest
from pipeline.samplers.ddim import kept_before, moved, signal_and_noise
from pipeline.samplers.table import H1, H2, H3, H4, OUT, Row, Table, X, filled, matrix, predictions
from pipeline.schedule import ScheduleSpec


def pndm(spec: ScheduleSpec, steps: int, begin: int = 0) -> Table:
    """Make the table of Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", eq. 9 and 12.

    Eq. 12 is DDIM's step for a combination of outputs; h1, h2, h3 are the last outputs, h4 is the first x.
    The first step is taken twice, the second time with the mean of the outputs at both its ends (diffusers:
    skip_prk_steps), so that n > 1 steps take n + 1 evaluations. A run that begins at a later step takes its own first
    step twice and then goes on from the timesteps of the whole run, where diffusers' scheduler, which counts its calls,
    sees x one stride noisier than it is; its pictures are what this is compared with.
    """
    if spec.prediction == "sample":
        raise InvalidRequest("sampler pndm combines predictions of noise or v; this model predicts the sample")
    stops = np.round(schedule.timesteps(spec, steps, spacing="leading")).astype(int)
    if steps == 1:
        x, x0 = _transfer(spec, stops[0], steps, X, OUT)
        return filled([matrix(x, x0)], stops.astype(np.float64), [_level(spec, stops[0])])
    visited = np.insert(stops, 1, stops[1])[begin:]
    stride = spec.train_steps // steps
    matrices = []
    for i, t in enumerate(visited):
        start, combination = X, _combination(i)
        if i == 1:
            # Back to the first x: this evaluation saw what the first one led to.
            start, combination, t = H4, 0.5 * (OUT + H1), t + stride
        x, _ = _transfer(spec, int(t), steps, start, combination)
        x0 = _transfer(spec, int(visited[i]), steps, X, OUT)[1]
        history = {"h1": H1} if i == 1 else {"h1": OUT, "h2": H1, "h3": H2}
        matrices.append(matrix(x, x0, **history, **({"h4": X} if i == 0 else {})))
    levels = [_level(spec, t) for t in visited]
    return filled(matrices, visited.astype(np.float64), levels, steps_done=np.arange(len(visited)), whole=not begin)


def _combination(i: int) -> Row:
    """Combine what outputs there are at evaluation i by Adams-Bashforth. The second evaluation's is not kept."""
    if i < 2:
        return OUT
    if i == 2:
        return (3 * OUT - H1) / 2
    if i == 3:
        return (23 * OUT - 16 * H1 + 5 * H2) / 12
    return (55 * OUT - 59 * H1 + 37 * H2 - 9 * H3) / 24


def _transfer(spec: ScheduleSpec, t: int, steps: int, x: Row, out: Row) -> tuple[Row, Row]:
    """Return x a stride before t, and x0."""
    x0, eps = predictions(spec, *_level(spec, t), x=x, out=out)
    return moved(kept_before(spec, t, steps, to_one=False), x0, eps), x0


def _level(spec: ScheduleSpec, t: int) -> tuple[float, float]:
    return signal_and_noise(float(schedule.alphas_cumprod(spec)[t]))
