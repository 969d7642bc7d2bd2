"""Whole runs of a table, and of diffusers' scheduler that it stands for, over the same network and the same noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from numpy.typing import NDArray

from pipeline.samplers import NOISE_COLUMN, OUT_COLUMN, STATE, table
from pipeline.schedule import ScheduleSpec

# Of the largest |x| of a step. Both sides round to float32 in the same places; what is left is the last bit of torch's
# logarithms and roots, divided by small numbers in diffusers' order of operations.
TOLERANCE = 1e-5
SPACINGS = ["leading", "trailing", "linspace", None]
SD = ScheduleSpec(1000, 0.00085, 0.012, "scaled_linear", "epsilon", "leading", 1, False)
OTHER = ScheduleSpec(900, 0.0007, 0.011, "linear", "epsilon", "leading", 1, False)

_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
# The class that a user of diffusers takes, and the switches beside the checkpoint's own config.
THEIRS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "ddpm": (DDPMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, _KARRAS),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "heun_karras": (HeunDiscreteScheduler, _KARRAS),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, _KARRAS),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, _SDE),
    "dpmpp_2m_sde_karras": (DPMSolverMultistepScheduler, _SDE | _KARRAS),
    "dpmpp_3m_sde": (DPMSolverMultistepScheduler, {"solver_order": 3} | _SDE),
    "dpmpp_3m_sde_karras": (DPMSolverMultistepScheduler, {"solver_order": 3} | _SDE | _KARRAS),
    "unipc": (UniPCMultistepScheduler, {}),
    "unipc_karras": (UniPCMultistepScheduler, _KARRAS),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "lcm": (LCMScheduler, {}),
}
_DRAWING = (scheduling_ddpm, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_lcm)
_SHAPE = (1, 3, 4, 5)

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Run:
    timesteps: Array  # [evaluations]
    x: Array  # [evaluations, ...]: after each
    x0: Array | None  # [evaluations, ...]: as each predicts it, where the scheduler tells


@dataclasses.dataclass(frozen=True)
class Masked:
    """What StableDiffusionInpaintPipeline keeps, over a UNet that takes the latents alone."""

    mask: Array  # [...], 0..1; 1: anew
    original: Array  # [...]

    def over(self, x: Array, known: Array) -> Array:
        return (1 - self.mask) * known + self.mask * x


def network(sample: Array, t: float) -> Array:
    """Some function of what a UNet sees that is neither linear nor the same for two timesteps.

    It turns slowly in t: between two machines torch's own sigmas, and so Karras timesteps, differ in the last bit.
    """
    return np.tanh(sample * 1.3 + np.sin(t / 50)) + 0.1 * np.roll(sample, 1)


def draws(count: int) -> Array:
    """Successive draws, whole in float32 as a pipeline's are: [count, ...]."""
    drawn = np.random.default_rng(5).standard_normal((count, *_SHAPE))
    return drawn.astype(np.float32).astype(np.float64)


def ours(spec: ScheduleSpec, sampler: str, steps: int, masked: Masked | None = None, begin: int = 0) -> Run:
    """`begin`: the first steps that are not made; the run starts from a picture then."""
    run, drawn = table(spec, sampler, steps, begin), draws(1 + steps)
    terms = np.zeros((STATE + 2, *_SHAPE))
    (alpha, sigma), picture = run.levels[0], draws(2 + steps)[-1]
    terms[0] = alpha * picture + sigma * drawn[0] if begin else drawn[0] * run.initial_scale
    states, predictions = [], []
    told = zip(run.matrices, run.timesteps, run.input_scales, run.noise, run.levels[1:], strict=True)
    for matrix, t, scale, draw, (alpha, sigma) in told:
        terms[OUT_COLUMN] = network(terms[0] * scale, float(t))
        terms[NOISE_COLUMN] = drawn[1 + draw] if draw >= 0 else 1e9  # whoever uses it without a draw shows
        result = np.tensordot(matrix, terms, axes=1)  # [6, ...]
        terms[:STATE] = result[:STATE]
        if masked is not None:
            terms[0] = masked.over(terms[0], alpha * masked.original + sigma * drawn[0])
        states.append(terms[0].copy())
        predictions.append(result[STATE])
    return Run(run.timesteps, np.stack(states), np.stack(predictions))


def config_of(spec: ScheduleSpec) -> dict[str, Any]:
    """The scheduler_config.json of a checkpoint with this schedule."""
    config = {
        "num_train_timesteps": spec.train_steps,
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "beta_schedule": spec.beta_schedule,
        "prediction_type": spec.prediction,
        "steps_offset": spec.steps_offset,
        "set_alpha_to_one": spec.set_alpha_to_one,
        "rescale_betas_zero_snr": spec.rescale_betas_zero_snr,
        "clip_sample": False,
    }
    return config if spec.spacing is None else config | {"timestep_spacing": spec.spacing}


def theirs(
    spec: ScheduleSpec,
    sampler: str,
    steps: int,
    alphas_cumprod: torch.Tensor | None = None,
    masked: Masked | None = None,
    begin: int = 0,
) -> Run:
    """`alphas_cumprod` replaces the scheduler's own; `masked` is done as the inpainting pipeline does it."""
    made_by, switches = THEIRS[sampler]
    scheduler = made_by.from_config(config_of(spec), **switches)
    if alphas_cumprod is not None:
        scheduler.alphas_cumprod = alphas_cumprod
    return run(scheduler, steps, masked, begin)


def run(scheduler: Any, steps: int, masked: Masked | None = None, begin: int = 0) -> Run:
    """A run of any of diffusers' schedulers that a table may stand for."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Else a run whose first two timesteps are equal (Karras, zero terminal SNR) begins at the second, and ends
        # in an IndexError.
        scheduler.set_begin_index(begin * scheduler.order)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    drawn = torch.from_numpy(draws(1 + steps))
    x = drawn[0] * scheduler.init_noise_sigma
    if begin:
        x = scheduler.add_noise(torch.from_numpy(draws(2 + steps)[-1]), drawn[0], timesteps[:1])
    states, predictions = [], []
    with pytest.MonkeyPatch.context() as patched:
        successive = iter(drawn[1:])
        for module in _DRAWING:
            patched.setattr(module, "randn_tensor", lambda *_, dtype, **__: next(successive).to(dtype))
        for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            seen = scheduler.scale_model_input(x, t).double().numpy()
            result = scheduler.step(torch.from_numpy(network(seen, float(t))), t, x)
            x = result.prev_sample
            if masked is not None:
                known = torch.from_numpy(masked.original)
                if following is not None:
                    known = scheduler.add_noise(known, drawn[0], following[None])
                x = torch.from_numpy(masked.over(x.double().numpy(), known.double().numpy()))
            states.append(x.double().numpy())
            predictions.append(_prediction(scheduler, result))
    x0 = None if predictions[0] is None else np.stack([p.double().numpy() for p in predictions])
    return Run(timesteps.double().numpy(), np.stack(states), x0)


def _prediction(scheduler: Any, result: Any) -> torch.Tensor | None:
    for name in ("pred_original_sample", "denoised"):
        if getattr(result, name, None) is not None:
            return getattr(result, name)
    return scheduler.model_outputs[-1] if hasattr(scheduler, "model_outputs") else None


def difference(one: Array, two: Array) -> float:
    """The largest of all evaluations, [evaluations, ...], as a part of the largest value at each."""
    if len(one) != len(two):
        return float("inf")
    axes = tuple(range(1, one.ndim))
    return float((np.abs(one - two).max(axes) / np.abs(two).max(axes)).max())
