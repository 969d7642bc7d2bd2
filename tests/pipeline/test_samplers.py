"""The tables against diffusers' schedulers, over whole trajectories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.errors import InvalidRequest
from pipeline.samplers import SAMPLERS, table
from pipeline.schedule import ScheduleSpec
from tests.support.pairs import grid
from tests.support.trajectories import OTHER, SD, SPACINGS, THEIRS, TOLERANCE, difference, ours, theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

STEPS = (1, 2, 4, 7, 20, 50)
PREDICTIONS = ["epsilon", "v_prediction"]
SCHEDULES = {"scaled_linear": SD, "linear": OTHER}
FIXED_COURSE = {"lcm", "unipc_karras", *(name for name in SAMPLERS if name.startswith("dpm") and "karras" in name)}


def compare(spec: ScheduleSpec, sampler: str, steps: int, tolerance: float = TOLERANCE, begin: int = 0) -> None:
    got, wanted = ours(spec, sampler, steps, begin=begin), theirs(spec, sampler, steps, begin=begin)
    assert len(got.timesteps) == len(wanted.timesteps)
    np.testing.assert_allclose(got.timesteps, wanted.timesteps, rtol=2e-7, atol=1e-5)  # a bit of float32
    assert difference(got.x, wanted.x) < tolerance, (spec, steps)
    if wanted.x0 is not None:
        assert got.x0 is not None and difference(got.x0, wanted.x0) < tolerance, (spec, steps)


def test_each_has_its_scheduler() -> None:
    assert list(SAMPLERS) == list(THEIRS)


@pytest.mark.parametrize(
    ("schedule", "spacing", "prediction", "sampler", "steps"),
    grid(list(SCHEDULES), SPACINGS, PREDICTIONS, list(SAMPLERS), STEPS),
)
def test_whole_trajectories(schedule: str, spacing: str | None, prediction: str, sampler: str, steps: int) -> None:
    for to_one in (False, True) if sampler in ("ddim", "pndm") else (False,):
        changes = {"spacing": spacing, "prediction": prediction, "set_alpha_to_one": to_one}
        compare(dataclasses.replace(SCHEDULES[schedule], **changes), sampler, steps)


@pytest.mark.parametrize(
    ("spacing", "prediction", "sampler", "steps", "begin"),
    grid(SPACINGS, PREDICTIONS, list(SAMPLERS), (4, 7, 20), (1, 2, 3)),
)
def test_a_run_from_a_picture(spacing: str | None, prediction: str, sampler: str, steps: int, begin: int) -> None:
    """As diffusers' img2img begins: the first steps are not made, and there is no history of them."""
    spec = dataclasses.replace(SD, spacing=spacing, prediction=prediction)
    compare(spec, sampler, steps, begin=begin)
    run = table(spec, sampler, steps, begin)
    assert run.steps == steps - begin == run.steps_after(run.evaluations)
    assert run.draws == sum(run.noise >= 0), "the draws are counted from the first"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"lcm"}))
def test_a_long_run(sampler: str) -> None:
    # diffusers divides float32 rounding by a step's length squared at third order: 3e-5 at 150 steps.
    compare(SD, sampler, 150, 10 * TOLERANCE if sampler.startswith("dpmpp_3m") else TOLERANCE)


@pytest.mark.parametrize(
    ("sampler", "spacing", "steps"), grid(sorted(SAMPLERS.keys() - {"euler_a", "pndm"}), SPACINGS, (1, 4, 20))
)
def test_a_model_that_predicts_the_sample(sampler: str, spacing: str | None, steps: int) -> None:
    """diffusers' Euler ancestral and PNDM refuse it: see test_sampler_formulas."""
    compare(dataclasses.replace(SD, prediction="sample", spacing=spacing), sampler, steps)


@pytest.mark.parametrize(
    ("prediction", "sampler", "spacing", "steps"),
    grid(PREDICTIONS, list(SAMPLERS), SPACINGS, (2, 4, 20), always=[("epsilon", "euler_a", "linspace", 4)]),
)
def test_a_cosine_schedule(prediction: str, sampler: str, spacing: str | None, steps: int) -> None:
    """Its first sigma is 20,000, which costs diffusers' float32 more than the tolerance in two places."""
    spec = dataclasses.replace(SD, beta_schedule="squaredcos_cap_v2", prediction=prediction, spacing=spacing)
    if sampler == "euler_a" and np.isnan(theirs(spec, sampler, steps).x).any():
        assert np.isfinite(ours(spec, sampler, steps).x).all()  # sigma_up is rounded past the level it leads to
    elif sampler == "pndm" and spacing in ("trailing", "linspace"):
        compare(spec, sampler, steps, 2e-3)  # its eq. 9 takes the difference of two numbers of 20,000
    else:
        compare(spec, sampler, steps)


SCALED = sorted(SAMPLERS.keys() - {"heun", "heun_karras", "pndm"})  # to no signal at all: diffusers' others are not
WITHOUT_SIGNAL = ["ddim", "ddpm", "lcm"]  # start at the last timestep itself, where noise tells nothing of the picture


@pytest.mark.usefixtures("rounded_roots")
@pytest.mark.parametrize(
    ("prediction", "sampler", "spacing", "steps"),
    [
        *grid(["v_prediction"], SCALED, SPACINGS, STEPS),
        *grid(["epsilon"], [sampler for sampler in SCALED if sampler not in WITHOUT_SIGNAL], SPACINGS, STEPS),
        *grid(["epsilon"], ["ddim", "ddpm"], ["leading", None], STEPS),
    ],
)
def test_zero_terminal_snr(prediction: str, sampler: str, spacing: str | None, steps: int) -> None:
    """diffusers' Heun and PNDM do not take it: see test_sampler_formulas."""
    spec = dataclasses.replace(SD, prediction=prediction, spacing=spacing, rescale_betas_zero_snr=True)
    compare(spec, sampler, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", WITHOUT_SIGNAL)
def test_noise_without_signal_is_refused(sampler: str, spacing: str | None, steps: int) -> None:
    spec = dataclasses.replace(SD, prediction="epsilon", spacing=spacing, rescale_betas_zero_snr=True)
    # linspace's one step starts at the clean end.
    if sampler == "lcm" or spacing == "trailing" or (spacing == "linspace" and steps > 1):
        with pytest.raises(InvalidRequest, match="without signal"):
            ours(spec, sampler, steps)
    else:
        assert np.isfinite(ours(spec, sampler, steps).x).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [7, 20])
def test_anything_else_fails_the_same_comparison(sampler: str, steps: int) -> None:
    wanted = theirs(SD, sampler, steps).x
    for wrong in (
        {"prediction": "v_prediction"},
        {"beta_end": 0.01201},
        {"beta_schedule": "linear"},
        {"rescale_betas_zero_snr": True, "prediction": "v_prediction"},
    ):
        assert difference(ours(dataclasses.replace(SD, **wrong), sampler, steps).x, wanted) > TOLERANCE, wrong
    for other in SAMPLERS.keys() - {sampler}:
        assert difference(ours(SD, other, steps).x, wanted) > 10 * TOLERANCE, other
    for moved in ({"spacing": "trailing"}, {"spacing": "linspace"}, {"steps_offset": 0}):
        got = difference(ours(dataclasses.replace(SD, **moved), sampler, steps).x, wanted)
        assert got < TOLERANCE if sampler in FIXED_COURSE else got > TOLERANCE, moved
    to_one = difference(ours(dataclasses.replace(SD, set_alpha_to_one=True), sampler, steps).x, wanted)
    assert to_one > TOLERANCE if sampler in ("ddim", "pndm") else to_one < TOLERANCE
