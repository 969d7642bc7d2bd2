"""Levels of the tables: a known picture, noised to them and put where a mask is 0, as diffusers puts it there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.samplers import SAMPLERS, table
from pipeline.schedule import ScheduleSpec
from tests.support.pairs import grid
from tests.support.trajectories import SD, SPACINGS, TOLERANCE, Masked, difference, draws, ours, theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


def masked(mask: np.ndarray | float | None = None) -> Masked:
    shape, chance = draws(1)[0].shape, np.random.default_rng(8)
    soft = np.round(chance.random(shape) * 3) / 3  # 0, 1/3, 2/3 and 1
    original = chance.standard_normal(shape) * 2
    return Masked(soft if mask is None else np.broadcast_to(np.float64(mask), shape), original)


@pytest.mark.parametrize(
    ("spacing", "prediction", "sampler", "steps"),
    grid(SPACINGS, ["epsilon", "v_prediction"], list(SAMPLERS), (1, 2, 7, 20)),
)
def test_whole_trajectories(spacing: str | None, prediction: str, sampler: str, steps: int) -> None:
    """At every evaluation, so also between the two of a Heun step and of the first PNDM one: diffusers blends there."""
    spec = dataclasses.replace(SD, spacing=spacing, prediction=prediction)
    got, wanted = ours(spec, sampler, steps, masked()), theirs(spec, sampler, steps, masked=masked())
    assert difference(got.x, wanted.x) < TOLERANCE
    if wanted.x0 is not None:
        assert got.x0 is not None and difference(got.x0, wanted.x0) < TOLERANCE
    if steps == 7:
        assert difference(got.x, ours(spec, sampler, steps).x) > 100 * TOLERANCE, "the mask shows"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_ones_and_all_zeros(sampler: str) -> None:
    free, kept = ours(SD, sampler, 5, masked(1)), ours(SD, sampler, 5, masked(0))
    assert np.array_equal(free.x, ours(SD, sampler, 5).x)
    assert np.array_equal(kept.x[-1], masked().original)


@pytest.mark.parametrize("spec", [SD, dataclasses.replace(SD, spacing="trailing", rescale_betas_zero_snr=True)])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m_karras", "unipc", "lcm"])
def test_levels(spec: ScheduleSpec, sampler: str) -> None:
    """Less and less noise. alpha^2 + sigma^2 = 1, or, where the UNet sees x scaled, alpha = 1 before the scaling."""
    run = table(dataclasses.replace(spec, prediction="v_prediction"), sampler, 6)
    alpha, sigma = run.levels.T
    assert len(run.levels) == run.evaluations + 1 and (alpha[-1], sigma[-1]) == (1, 0)
    noise = sigma[:-1] / np.maximum(alpha[:-1], 1e-9)
    assert (np.diff(noise) <= 0).all()
    seen = run.input_scales[:, None] * run.levels[:-1]  # what the UNet is trained on: of unit variance
    np.testing.assert_allclose(np.square(seen).sum(axis=1), 1, atol=3e-7)  # two float32 roundings
