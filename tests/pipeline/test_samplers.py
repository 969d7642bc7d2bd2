"""The tables against diffusers' schedulers, over whole trajectories."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest
from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, SAMPLERS, STATE, table
from pipeline.schedule import ScheduleSpec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

THEIRS: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
# Of the largest |x| of a step. The tables are float64; Euler and DPM-Solver compute in float32 in diffusers, and
# where Euler subtracts up to 150 times the noise from x to predict x0, float32 leaves four or five digits.
TOLERANCE = 1e-5
TOLERANCE_X0 = 1e-4
SPACINGS = ["leading", "trailing", "linspace", None]
SD = ScheduleSpec(1000, 0.00085, 0.012, "scaled_linear", "epsilon", "leading", 1, False)
OTHER = ScheduleSpec(900, 0.0007, 0.011, "linear", "epsilon", "leading", 1, False)

Run = tuple[NDArray[np.float64], NDArray[np.float64]]  # x after each step, and x0 as each step predicts it


def network(sample: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Some function of what a UNet sees that is neither linear nor the same for two timesteps."""
    return np.tanh(sample * 1.3 + np.sin(t)) + 0.2 * np.roll(sample, 1)


def noise() -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal((4, 6))


def ours(spec: ScheduleSpec, sampler: str, steps: int) -> Run:
    run = table(spec, sampler, steps)
    terms = np.zeros((STATE + 2, *noise().shape))
    terms[0] = noise() * run.initial_scale
    terms[NOISE_COLUMN] = 1e9  # whoever uses it shows
    states, predictions = [], []
    for matrix, t, scale in zip(run.matrices, run.timesteps, run.input_scales, strict=True):
        terms[OUT_COLUMN] = network(terms[0] * scale, float(t))
        result = np.tensordot(matrix, terms, axes=1)  # [6, ...]
        terms[:STATE] = result[:STATE]
        states.append(result[0])
        predictions.append(result[STATE])
    return np.stack(states), np.stack(predictions)


def theirs(spec: ScheduleSpec, sampler: str, steps: int) -> Run:
    config: dict[str, Any] = {
        "num_train_timesteps": spec.train_steps,
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "beta_schedule": spec.beta_schedule,
        "prediction_type": spec.prediction,
        "steps_offset": spec.steps_offset,
        "set_alpha_to_one": spec.set_alpha_to_one,
        "clip_sample": False,
    }
    if spec.spacing is not None:
        config["timestep_spacing"] = spec.spacing
    scheduler = THEIRS[sampler].from_config(config)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise()) * scheduler.init_noise_sigma
    states, predictions = [], []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t).double().numpy()
        result = scheduler.step(torch.from_numpy(network(seen, float(t))), t, x)
        x = result.prev_sample
        states.append(x.double().numpy())
        predictions.append(getattr(result, "pred_original_sample", None))
        if predictions[-1] is None:
            predictions[-1] = scheduler.model_outputs[-1]
    return np.stack(states), np.stack([np.asarray(p, np.float64) for p in predictions])


def difference(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """The largest of all steps, [steps, ...]."""
    axes = tuple(range(1, one.ndim))
    return float((np.abs(one - two).max(axes) / np.abs(two).max(axes)).max())


@pytest.mark.parametrize("spec", [SD, OTHER], ids=["scaled_linear", "linear"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_trajectories(spec: ScheduleSpec, spacing: str | None, prediction: str, sampler: str) -> None:
    for to_one in (False, True) if sampler == "ddim" else (False,):
        own = dataclasses.replace(spec, spacing=spacing, prediction=prediction, set_alpha_to_one=to_one)
        for steps in (1, 2, 4, 7, 20, 50, 150):
            (x, x0), (their_x, their_x0) = ours(own, sampler, steps), theirs(own, sampler, steps)
            assert len(x) == len(their_x) == steps
            assert difference(x, their_x) < TOLERANCE, steps
            assert difference(x0, their_x0) < TOLERANCE_X0, steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [4, 20, 150])
def test_anything_else_fails_the_same_comparison(sampler: str, steps: int) -> None:
    wanted = theirs(SD, sampler, steps)[0]
    for wrong in (
        {"spacing": "trailing"},
        {"spacing": "linspace"},
        {"prediction": "v_prediction"},
        {"beta_end": 0.01201},
        {"beta_schedule": "linear"},
        {"steps_offset": 0},
    ):
        assert difference(ours(dataclasses.replace(SD, **wrong), sampler, steps)[0], wanted) > TOLERANCE, wrong
    for other in SAMPLERS.keys() - {sampler}:
        assert difference(ours(SD, other, steps)[0], wanted) > 10 * TOLERANCE, other
    if sampler == "ddim":
        to_one = dataclasses.replace(SD, set_alpha_to_one=True)
        assert difference(ours(to_one, sampler, steps)[0][-1:], wanted[-1:]) > TOLERANCE


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_ends_at_the_predicted_picture(sampler: str) -> None:
    """The last noise level is zero, or for DDIM without set_alpha_to_one the first training step's."""
    x, x0 = ours(dataclasses.replace(SD, set_alpha_to_one=True), sampler, 9)
    assert difference(x[-1:], x0[-1:]) < 1e-12


@pytest.mark.parametrize(("sampler", "remembered"), [("ddim", 0), ("euler", 0), ("dpmpp_2m", 1)])
def test_what_a_sampler_does_not_remember_is_zero(sampler: str, remembered: int) -> None:
    for steps in (1, 2, 12):
        run = table(SD, sampler, steps)
        assert run.matrices.shape == (steps, STATE + 1, STATE + 2)
        assert run.evaluations == steps and run.steps_done.tolist() == list(range(1, steps + 1))
        assert not run.matrices[:, 1 + remembered : STATE].any(), "a row of history that nobody reads"
        assert not run.matrices[:, :, 1 + remembered : STATE].any(), "a column of history that nobody wrote"
        assert not run.matrices[:, :, NOISE_COLUMN].any(), "noise in a sampler that draws none"
        assert not run.matrices[0, :, 1:STATE].any(), "the first step has no history"
        assert run.matrices[:, [0, STATE], OUT_COLUMN].all(), "what the network says counts"


def test_a_table_is_made_once() -> None:
    assert table(SD, "euler", 33) is table(dataclasses.replace(SD), "euler", 33)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 0), ("euler", -3), ("dpmpp_2m", 1001), ("ddim", 10**9)])
def test_steps_out_of_range(sampler: str, steps: int) -> None:
    with pytest.raises(InvalidRequest, match=f"steps is {steps}"):
        table(SD, sampler, steps)


def test_an_unknown_sampler_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="sampler is 'heun'; it must be one of ddim, euler, dpmpp_2m"):
        table(SD, "heun", 20)
