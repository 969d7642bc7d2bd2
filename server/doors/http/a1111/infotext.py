"""How a picture was made, as AUTOMATIC1111 writes it: a text that its tools read back, and an answer's `info`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from engines.model import Model
from latentd import __version__
from server.doors.http.a1111.samplers import label_of
from server.events import Image
from server.request import ImageRequest
from server.wish import Wish

_VERSION = f"latentd {__version__}"


def infotext(wish: Wish, model: Model, request: ImageRequest, seed: int) -> str:
    """Write one picture's settings (modules/processing.py, create_infotext)."""
    prompt, negative, skip = _prompt(request), request.negative_prompt or "", request.clip_skip or 0
    label, scheduler = label_of(wish.sampler)
    settings = {
        "Steps": wish.steps,
        "Sampler": label,
        "Schedule type": scheduler,
        "CFG scale": f"{wish.guidance:g}",
        "Seed": seed,
        "Size": f"{wish.size[0]}x{wish.size[1]}",
        "Model hash": model.digest[:10],
        "Model": model.id,
        **({} if request.strength is None else {"Denoising strength": f"{request.strength:g}"}),
        **({"Clip skip": skip + 1} if skip else {}),
        "Version": _VERSION,
    }
    lines = [prompt] + ([f"Negative prompt: {negative}"] if negative else [])
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())])


def info(wish: Wish, model: Model, request: ImageRequest, pictures: Sequence[Image], batch: int) -> dict[str, Any]:
    """Return what A1111 tells about the pictures that were made (Processed.js), and their scores where a judge has
    chosen them. `batch`: pictures of an iteration.
    """
    prompt, negative, skip = _prompt(request), request.negative_prompt or "", request.clip_skip or 0
    seeds, count = [picture.seed for picture in pictures], len(pictures)
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": wish.seed,
        "all_seeds": seeds,
        "subseed": 0,
        "all_subseeds": [0] * count,
        "subseed_strength": 0,
        "width": wish.size[0],
        "height": wish.size[1],
        "sampler_name": label_of(wish.sampler)[0],
        "cfg_scale": wish.guidance,
        "steps": wish.steps,
        "batch_size": batch,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.id,
        "sd_model_hash": model.digest[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength,
        "extra_generation_params": {"Schedule type": label_of(wish.sampler)[1]},
        "index_of_first_image": 0,
        "infotexts": [infotext(wish, model, request, seed) for seed in seeds],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": skip + 1,
        "is_using_inpainting_conditioning": False,
        "version": _VERSION,
        **({} if wish.keep is None else {"scores": [picture.score for picture in pictures]}),
    }


def _prompt(request: ImageRequest) -> str:
    """Write the prompt with the LoRAs that it named."""
    return (request.prompt or "") + "".join(f"<lora:{name}:{weight:g}>" for name, weight in request.loras or ())


def _quoted(value: str) -> str:
    """Quote what would be read as more than one setting (infotext_utils.py, quote)."""
    if not any(character in value for character in ",\n:"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


__all__ = ["info", "infotext"]
