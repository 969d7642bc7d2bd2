"""What every sampler fills: the rows of a quantity, the matrix of an evaluation, the table of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest
from pipeline.schedule import ScheduleSpec

Row = NDArray[np.float64]  # [7]: a quantity's coefficients over x, h1, h2, h3, h4, out, noise
Matrix = NDArray[np.float64]  # [6, 7]
Sum = list[tuple[int, np.float32]]  # of a row: the columns whose coefficients are not zero, and these

HISTORY = 4
STATE = 1 + HISTORY  # x and its history
OUT_COLUMN, NOISE_COLUMN = STATE, STATE + 1
X, H1, H2, H3, H4, OUT, NOISE = np.eye(STATE + 2)
_FORGET: Row = np.zeros(STATE + 2)


@dataclass(frozen=True)
class Table:
    """Holds a run of one sampler, or the rest of one. The first axis counts UNet evaluations."""

    matrices: NDArray[np.float64]  # [evaluations, 6, 7]
    timesteps: NDArray[np.float64]  # [evaluations]
    input_scales: NDArray[np.float64]  # [evaluations]: the UNet sees x times this
    steps_done: NDArray[np.int64]  # [evaluations]: steps finished after each evaluation
    noise: NDArray[np.int64]  # [evaluations]: which draw after the initial latents' each uses, from 0; -1: none
    levels: NDArray[np.float64]  # [evaluations + 1, 2]: before each, how much picture and noise x is; then 1 and 0
    initial_scale: float  # x starts as noise times this
    whole: bool = True  # is no step left out at its beginning?

    @property
    def evaluations(self) -> int:
        return len(self.timesteps)

    def sums(self) -> list[list[Sum]]:
        """List each evaluation's six rows as sums, in float32. Whoever makes a picture keeps them as long as that."""
        matrices = self.matrices.astype(np.float32)
        sums: list[list[Sum]] = [[[] for _ in matrix] for matrix in matrices]
        where = np.nonzero(matrices)
        places = zip(*(axis.tolist() for axis in where), strict=True)
        for (evaluation, row, column), coefficient in zip(places, matrices[where], strict=True):
            sums[evaluation][row].append((column, coefficient))
        return sums

    @property
    def draws(self) -> int:
        """Count the draws of noise beside the initial latents."""
        return int(self.noise.max()) + 1

    @property
    def steps(self) -> int:
        return int(self.steps_done[-1])

    def after(self, steps: int) -> Table:
        """Return the rest of the run when so many of its steps are not made: its evaluations, and its own count.

        For samplers whose steps remember nothing of those before.
        """
        first = next(i for i in range(self.evaluations) if self.steps_after(i) == steps)
        noise = self.noise[first:]
        return Table(
            matrices=self.matrices[first:],
            timesteps=self.timesteps[first:],
            input_scales=self.input_scales[first:],
            steps_done=self.steps_done[first:] - steps,
            noise=np.where(noise >= 0, noise - max(noise[0], 0), -1),
            levels=self.levels[first:],
            initial_scale=self.initial_scale,
            whole=False,
        )

    def steps_after(self, evaluations: int) -> int:
        """Count the steps that are finished when so many evaluations are done."""
        return self._steps_after[evaluations]

    @functools.cached_property
    def _steps_after(self) -> list[int]:
        return [0, *self.steps_done.tolist()]


def summands(coefficients: NDArray[np.float32]) -> Sum:
    """List those that are not zero, each behind its number."""
    return [(i, coefficient) for i, coefficient in enumerate(coefficients) if coefficient]


def matrix(x: Row, x0: Row, *, h1: Row = _FORGET, h2: Row = _FORGET, h3: Row = _FORGET, h4: Row = _FORGET) -> Matrix:
    """Return one evaluation's matrix: what becomes of x and of its history, and the picture that it predicts."""
    return np.stack([x, h1, h2, h3, h4, x0])  # [6, 7]


def filled(
    matrices: list[Matrix],
    timesteps: NDArray[np.float64],
    levels: Iterable[tuple[float, float]],
    *,
    input_scales: NDArray[np.float64] | None = None,
    steps_done: NDArray[np.int64] | None = None,
    noisy: bool = False,
    initial_scale: float = 1.0,
    whole: bool = True,
) -> Table:
    """Make a table; without `steps_done`, of one evaluation a step. `noisy`: a draw for each evaluation but the last.

    `levels`: what each evaluation takes its x for, as (alpha, sigma) of alpha picture + sigma noise. Whatever stands in
    for x, of a picture that is known, has to be noised to them.
    """
    count = len(matrices)
    noise = np.full(count, -1)
    if noisy:
        noise[:-1] = np.arange(count - 1)
    return Table(
        matrices=np.stack(matrices),
        timesteps=timesteps,
        input_scales=np.ones(count) if input_scales is None else input_scales,
        steps_done=np.arange(1, count + 1) if steps_done is None else steps_done,
        noise=noise,
        levels=np.array([*levels, (1.0, 0.0)]),
        initial_scale=initial_scale,
        whole=whole,
    )


def predictions(spec: ScheduleSpec, alpha: float, sigma: float, *, x: Row = X, out: Row = OUT) -> tuple[Row, Row]:
    """Return x0 and noise as rows, where x = alpha x0 + sigma eps. v: Salimans & Ho 2022, appendix D.

    Errors: InvalidRequest where a predicted noise says nothing about x0, because x has no signal.
    """
    if spec.prediction == "sample":
        return out, (x - alpha * out) / sigma
    if spec.prediction == "v_prediction":
        return alpha * x - sigma * out, alpha * out + sigma * x
    if alpha == 0:
        raise InvalidRequest(
            "this sampler starts at a timestep without signal (rescale_betas_zero_snr), where a model that predicts "
            "noise says nothing; euler, heun, dpmpp_2m and unipc start beside it",
            "sampler",
        )
    return (x - sigma * out) / alpha, out
