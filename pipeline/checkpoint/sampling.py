"""scheduler_config.json: the schedule that a model was trained on, and the sampler that its folder would draw with.

The schedule holds for every request. The rest of the config is about the folder's own sampler: where a table of ours
draws what that class draws with those fields, it is the model's default; a field that would make it another picture is
refused by name. Defaults are the class's, as diffusers 0.42.1 has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.index import Index
from pipeline.config import Config
from pipeline.samplers import DISTILLED_STEPS, SAMPLERS
from pipeline.schedule import ScheduleSpec, alphas_cumprod
from pipeline.source import Source

_CONFIG = "scheduler/scheduler_config.json"
USUAL = "dpmpp_2m"  # where a folder names no sampler of its own

Remark = Callable[[str], None]


@dataclass(frozen=True)
class _Field:
    """Describes a field of a scheduler: what its absence means, and the values with which our table draws the same."""

    absent: Any
    values: tuple[Any, ...]

    def holds(self, config: Config, key: str) -> bool:
        value = config.get(key)
        if value is None:  # null is false for a switch, as in Python, and else no value
            value = False if isinstance(self.absent, bool) and config.holds(key) else self.absent
        return value in self.values


_Fields = Mapping[str, _Field]
_OFF = _Field(False, (False,))
_NONE = _Field(None, (None,))

_LEVELS = {"use_exponential_sigmas": _OFF, "use_beta_sigmas": _OFF}
_ENDS = {"final_sigmas_type": _Field("zero", ("zero",))}
# Only Karras levels ask for their ends. Diffusers' Heun and DPM-Solver follow these, too, though they do not list them.
_KARRAS = {"sigma_min": _NONE, "sigma_max": _NONE}
_DPM = {
    **_LEVELS,
    **_ENDS,
    "use_lu_lambdas": _OFF,
    "solver_type": _Field("midpoint", ("midpoint", "logrho", "bh1", "bh2")),  # diffusers takes the last three for it
    "lambda_min_clipped": _Field(-math.inf, (-math.inf,)),
    "variance_type": _NONE,
}
_PLUS = _Field("dpmsolver++", ("dpmsolver++",))
_SDE = _Field("dpmsolver++", ("sde-dpmsolver++",))
_SECOND, _THIRD = _Field(2, (2,)), _Field(2, (3,))
_FINAL = _Field(True, (True,))
_UNIPC = {
    **_LEVELS,
    **_ENDS,
    "solver_order": _SECOND,
    "solver_type": _Field("bh2", ("bh2", "midpoint", "heun", "logrho")),
    "predict_x0": _FINAL,
    "lower_order_final": _FINAL,
    "disable_corrector": _Field([], ([],)),
    "solver_p": _NONE,
}

# By class: tables, the likeliest first, each with the fields that it needs. What a class does not read is not here.
_TABLES: dict[str, tuple[tuple[str, _Fields], ...]] = {
    "DDIMScheduler": (("ddim", {}),),
    "DDIMParallelScheduler": (("ddim", {}),),
    "DDPMScheduler": (("ddpm", {"variance_type": _Field("fixed_small", ("fixed_small",))}),),
    "DDPMParallelScheduler": (("ddpm", {"variance_type": _Field("fixed_small", ("fixed_small",))}),),
    "EulerDiscreteScheduler": (("euler", {**_LEVELS, **_ENDS}),),
    "EulerAncestralDiscreteScheduler": (("euler_a", {}),),
    "HeunDiscreteScheduler": (("heun", _LEVELS),),
    "DPMSolverMultistepScheduler": (
        ("dpmpp_2m", {"algorithm_type": _PLUS, "solver_order": _SECOND, **_DPM}),
        ("dpmpp_2m_sde", {"algorithm_type": _SDE, "solver_order": _SECOND, **_DPM}),
        ("dpmpp_3m_sde", {"algorithm_type": _SDE, "solver_order": _THIRD, "lower_order_final": _FINAL, **_DPM}),
    ),
    "UniPCMultistepScheduler": (("unipc", _UNIPC),),
    "PNDMScheduler": (("pndm", {"skip_prk_steps": _Field(False, (True,))}),),
    "LCMScheduler": (("lcm", {}),),
}
# Classes on the same schedule that have no table: the nearest one that has.
_NEAREST = {
    "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_2m_sde",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "KDPM2AncestralDiscreteScheduler": "euler_a",
    "KDPM2DiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "euler",
    "SASolverScheduler": "dpmpp_2m_sde",
    "TCDScheduler": "lcm",
}
_DISTILLED = ("LCMScheduler", "TCDScheduler")
# beta_start, beta_end and beta_schedule of the classes that have others than most.
_BETAS = {
    "DPMSolverSDEScheduler": (0.00085, 0.012, "linear"),
    "HeunDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2DiscreteScheduler": (0.00085, 0.012, "linear"),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "TCDScheduler": (0.00085, 0.012, "scaled_linear"),
}
_MOST_BETAS = (0.0001, 0.02, "linear")
# These classes know no rescale_betas_zero_snr, and diffusers draws with the betas as they are.
_UNSCALED = (
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
)

# What no table does, whichever sampler a request names: it is no part of the schedule, or not linear.
_FIXED = {
    "interpolation_type": "linear",
    "original_inference_steps": DISTILLED_STEPS,
    "predict_epsilon": True,  # of old DDPM configs; prediction_type came later
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_flow_sigmas": False,
}


@dataclass(frozen=True)
class Sampling:
    """Holds what a folder's scheduler says."""

    schedule: ScheduleSpec
    sampler: str  # a key of SAMPLERS
    distilled: bool  # to few steps without guidance, by the scheduler's class


def read_sampling(source: Source, index: Index, chosen: str | None, remark: Remark) -> Sampling:
    """Read the scheduler's config; `chosen` is the sampler that the model's own settings name, if they do.

    Errors: CheckpointError, naming the key, for what no table of ours draws. With a `chosen` sampler, fields of the
    folder's own one are a remark.
    """
    config = Config(source, _CONFIG)
    named = config.get("_class_name")
    name = index.scheduler or named
    if name != named and None not in (name, named):
        remark(f"{config.path}: _class_name is {named}, but model_index.json says {name}, as which it is read")
    schedule = _schedule(config, name, index, remark)
    sampler = _table_name(config, name, chosen, remark)
    if named != name and named in _TABLES:  # whichever of the two was meant, nothing of it is passed over
        _table_name(config, named, chosen, remark)
    if sampler == "pndm" and chosen is None:
        # Published SD 1.x folders name it, and nobody chose it. Its weights, 55, -59, 37, -9 over 24, multiply what
        # the network errs: in bf16 the demo model's picture is 18.6 dB from float32's, by other samplers above 43 dB.
        remark(f"{config.path}: requests that name no sampler get {USUAL}, not {name}, which is sampler pndm")
        sampler = USUAL
    return Sampling(schedule, chosen or sampler, name in _DISTILLED)


def _table_name(config: Config, name: str | None, chosen: str | None, remark: Remark) -> str:
    """Return the table that draws what the class `name` draws with these fields."""
    if name is None:
        return USUAL
    karras = "_karras" if config.get("use_karras_sigmas") else ""
    if name in _NEAREST:
        near = _NEAREST[name] + karras if _NEAREST[name] + karras in SAMPLERS else _NEAREST[name]
        if chosen is None:
            remark(f"{config.path}: latentd has no table of {name}; requests that name no sampler get {near}")
        return near
    if name not in _TABLES:
        raise config.refusal("_class_name", f"model_index.json or it names {name}; latentd does {', '.join(_TABLES)}")
    misses = []
    for table, fields in _TABLES[name]:
        wanted = table + karras if table + karras in SAMPLERS else table
        needed = {**fields, **(_KARRAS if wanted != table else {})}
        misses.append([key for key, field in needed.items() if not field.holds(config, key)])
        if not misses[-1]:
            return wanted
    # Of the nearest row: the same algorithm, then the same order.
    missed = min(misses, key=lambda keys: [key in keys for key in ("algorithm_type", "solver_order")])[0]
    if chosen is None:
        raise config.refusal(
            missed, f'no sampler of latentd draws {name} with it: name one in latentd.json, {{"sampler": "{USUAL}"}}'
        )
    remark(f"{config.path}: {missed} of {name} is not followed; requests that name no sampler get {chosen}")
    return USUAL


def _schedule(config: Config, name: str | None, index: Index, remark: Remark) -> ScheduleSpec:
    config.require(_FIXED)
    _clipping(config, index, remark)
    start, end, course = _BETAS.get(name or "", _MOST_BETAS)
    spacings = ("leading", "trailing", "linspace")
    spec = ScheduleSpec(
        train_steps=config.integer("num_train_timesteps", 1000, most=10_000),
        beta_start=config.number("beta_start", start),
        beta_end=config.number("beta_end", end),
        beta_schedule=config.one_of("beta_schedule", ("scaled_linear", "linear", "squaredcos_cap_v2"), course),
        prediction=config.one_of("prediction_type", ("epsilon", "v_prediction", "sample"), "epsilon"),
        spacing=config.one_of("timestep_spacing", spacings, "") if config.get("timestep_spacing") is not None else None,
        steps_offset=_offset(config, index, remark),
        # A null is false, as in Python; absent it is each sampler's own.
        set_alpha_to_one=config.flag("set_alpha_to_one", False) if config.holds("set_alpha_to_one") else None,
        rescale_betas_zero_snr=_rescaled(config, name, remark),
    )
    if not 0 < spec.beta_start <= spec.beta_end < 1:
        raise config.refusal("beta_end", f"0 < beta_start {spec.beta_start:g} <= beta_end < 1 must hold")
    kept = alphas_cumprod(replace(spec, rescale_betas_zero_snr=False))
    if not (kept[0] < 1 and kept[-1] > 0):
        raise config.refusal(
            "beta_end", f"{spec.train_steps} timesteps would start without noise or end without signal"
        )
    return spec


def _offset(config: Config, index: Index, remark: Remark) -> int:
    """Return 1 whatever the file says: diffusers' Stable Diffusion pipelines set it so, and they make the pictures."""
    offset = config.integer("steps_offset", 0, least=0)
    if offset != 1 and config.get("steps_offset") is not None and not index.distilled:
        remark(f"{config.path}: steps_offset is {offset}; 1 is taken, as diffusers' pipeline does")
    return 1


def _clipping(config: Config, index: Index, remark: Remark) -> None:
    """Refuse clip_sample, or pass it over with a remark: it is for pixels. Errors: CheckpointError.

    diffusers' Stable Diffusion pipelines turn it off, the latent-consistency ones do not.
    """
    if config.flag("clip_sample", False):
        if index.distilled:
            raise config.refusal("clip_sample", "latentd does only false")
        remark(f"{config.path}: clip_sample is true; false is taken, as diffusers' pipeline does")


def _rescaled(config: Config, name: str | None, remark: Remark) -> bool:
    rescaled = config.flag("rescale_betas_zero_snr", False)
    if rescaled and name in _UNSCALED:
        remark(f"{config.path}: rescale_betas_zero_snr is true, which {name} does not know: it is not followed")
        return False
    return rescaled
