"""txt2img's request: what we have of it is read, the rest may be as A1111 leaves it, and is refused by name otherwise.

Names, and what they are when nobody sets them, are StableDiffusionTxt2ImgProcessingAPI's (modules/api/models.py, 1.10).
Clients send dozens of them with every request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engines.model import Model
from pipeline.errors import InvalidRequest
from server.doors.http.a1111 import options
from server.doors.http.a1111.samplers import eta_of, sampler_of
from server.doors.http.a1111.script import FIELD as SCRIPTS
from server.doors.http.a1111.script import of_scripts
from server.limits import within
from server.request import ImageRequest

# What A1111 calls the fields of ImageRequest.
NAMES = {
    "images": "batch_size",
    "guidance": "cfg_scale",
    "sampler": "sampler_name",
    "model": options.CHECKPOINT,
    "format": options.FORMAT,
    "quality": options.QUALITY,
}


class Txt2Img(BaseModel):
    """A request for pictures as AUTOMATIC1111's clients send it. Absent or null: the model's own default."""

    model_config = ConfigDict(extra="allow")

    prompt: str | None = Field(None, description="(words:1.3) weigh more; as long as four times the text encoder's.")
    negative_prompt: str | None = None
    seed: int | None = Field(None, description="Of the first picture; -1: drawn.")
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = Field(None, description="What sampler_name was called once.")
    scheduler: str | None = None
    batch_size: int | None = Field(None, description="batch_size x n_iter pictures are drawn.")
    n_iter: int | None = None
    eta: float | None = None
    send_images: bool | None = None
    override_settings: dict[str, Any] | None = None


def _nothing(value: Any) -> bool:
    return not value or value == "None"


def _at_most_zero(value: Any) -> bool:
    return not value or (isinstance(value, int | float) and value <= 0)


def _one(value: Any) -> bool:
    return value is None or value == 1


# What each may be, where that is not nothing at all.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "seed_resize_from_h": _at_most_zero,
    "seed_resize_from_w": _at_most_zero,
    "s_noise": _one,
    "initial_noise_multiplier": _one,
}
# These say something only beside a field that is refused, or about files, which we do not write.
_BESIDE = {
    *("subseed", "denoising_strength", "firstphase_width", "firstphase_height", "script_args", "refiner_switch_at"),
    *("do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "force_task_id"),
    *("disable_extra_networks", "comments"),
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
    *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg", "hr_distilled_cfg"),
    *("hr_additional_modules", "distilled_cfg_scale"),
}


def image_request(body: Txt2Img, model: Model, most_images: int) -> ImageRequest:
    """Read a body. Errors: InvalidRequest naming what we lack and what cannot be read."""
    extra = dict(body.model_extra or {})
    scripted = of_scripts(extra.pop(SCRIPTS, None))
    for name, value in extra.items():
        if name not in _BESIDE and not _NEUTRAL.get(name, _nothing)(value):
            raise InvalidRequest(f"{name[:64]} is {_shown(value)}; this server has nothing of the kind", name[:64])
    overrides = options.of_request(body.override_settings or {}, model)
    name = body.sampler_name or body.sampler_index
    sampler = sampler_of(name, body.scheduler, model.spec.defaults.sampler)
    eta = eta_of(sampler or model.spec.defaults.sampler)
    if body.eta is not None and eta is not None and body.eta != eta:
        raise InvalidRequest(f"eta is {body.eta:g}; {name or 'the sampler'} takes {eta:g} here", "eta")
    counts = {
        field: within(field, 1 if value is None else value, 1, most_images)
        for field, value in (("batch_size", body.batch_size), ("n_iter", body.n_iter))
    }
    images = counts["batch_size"] * counts["n_iter"]
    if images > most_images:
        raise InvalidRequest(f"batch_size x n_iter is {images}; at most {most_images} are drawn", "batch_size")
    steps = model.spec.defaults.steps if body.steps is None else body.steps
    prompt, loras = loras_of(body.prompt or "")
    return ImageRequest(
        prompt=body.prompt if body.prompt is None else prompt,
        loras=loras or None,
        negative_prompt=body.negative_prompt,
        width=body.width,
        height=body.height,
        steps=body.steps,
        guidance=body.cfg_scale,
        sampler=sampler,
        seed=None if body.seed == -1 else body.seed,
        images=images,
        preview_every=options.PREVIEW_STEPS if steps > options.PREVIEW_STEPS else 0,
        # A1111 reads every prompt so; one without brackets that the text encoder takes whole is not changed by it.
        long_prompt=True,
        prompt_weights=True,
        **overrides,
        **scripted,
    )


# As A1111 reads it (modules/extra_networks.py): <lora:name:weight>, also with a weight of the text encoder's own.
_LORA = re.compile(r"<lora:([^<>:]+)(?::([^<>]*))?>")


def loras_of(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Return a prompt without the LoRAs that it names, and these. Errors: InvalidRequest for a weight that is none.

    A weight of the text encoder's own has to be the same: here a LoRA is one thing.
    """
    loras = []
    for number, match in enumerate(_LORA.finditer(prompt), 1):
        name, words = match[1].strip(), [word.partition("=") for word in (match[2] or "1").split(":")]
        try:
            weights = {float(value if equals else key) for key, equals, value in words}
            (weight,) = weights
        except ValueError:
            # What stands there is a part of the prompt, which has no place in the log.
            sentence = f"prompt names LoRA {number} with something else than one weight; it takes <lora:name:weight>"
            raise InvalidRequest(sentence, "prompt") from None
        loras.append((name, weight))
    return _LORA.sub("", prompt), loras


def echoed(body: Txt2Img) -> dict[str, Any]:
    """Return what a request said, as its answer repeats it: without pictures, null for what JSON has no number for."""
    pictures = {"init_images", "mask", SCRIPTS}
    return _finite(body.model_dump(exclude_none=True, exclude=pictures))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(it) for key, it in value.items()}
    return [_finite(it) for it in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "of " + ", ".join(str(key)[:64] for key in list(value)[:8])
    return (
        str(value)[:64] if isinstance(value, bool | int | float) else "a list" if isinstance(value, list) else "a text"
    )


__all__ = ["NAMES", "SCRIPTS", "Txt2Img", "echoed", "image_request"]
