"""The model as the page is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.loras.shelf import Listed
from pipeline.samplers import SAMPLERS
from server.device.loop import Device
from server.doors.http.card import Card, read_card
from server.limits import Limits
from server.wish import default_size


def card_of(device: Device) -> Card:
    """Read the card of what a device serves; it lies on a disk."""
    return read_card(device.model.checkpoint.path)


def described(limits: Limits, device: Device, card: Card, loras: Sequence[Listed] = ()) -> dict[str, Any]:
    """Describe the model: sizes, samplers, defaults, limits, and which conditions it takes."""
    model, default = device.model, device.model.spec.defaults
    width, height = default_size(model, device.sizes)
    return {
        "id": model.id,
        "about": card.about,
        "examples": [{"prompt": prompt} for prompt in card.prompts],
        "things": card.things,
        "sizes": device.sizes,
        "samplers": list(SAMPLERS),
        "defaults": {
            "width": width,
            "height": height,
            "steps": default.steps,
            "guidance": default.guidance,
            "sampler": default.sampler,
        },
        "limits": {
            "prompt_characters": limits.prompt_characters,
            "steps": limits.steps,
            "guidance": limits.guidance,
            "images": limits.images,
            "style_weight": limits.style_weight,
            "texts": limits.texts,
            "loras": limits.loras,
            "lora_weight": limits.lora_weight,
            "side": limits.side,
        },
        "loras": [
            {"name": lora.name, "base": lora.base, "bytes": lora.size, "refusal": lora.refusal} for lora in loras
        ],
        "max_clip_skip": model.spec.skips,
        "max_tokens": model.tokenizer.capacity,
        "backend": model.backend.name,
        "precision": model.backend.precision,
        "seats": device.seats,
        "weights_digest": model.digest,
        "features": {
            "init_image": True,  # every checkpoint has a VAE with its encoder, and every backend runs it
            "mask": True,
            "inpaints": model.spec.inpaints,  # a UNet of nine channels: it draws nothing without init_image and mask
            "interval": not model.spec.unet.guidance_width,
            "style_image": model.styles is not None,
            "sizes": model.spec.unet.size_width > 0,
            "keep": model.judge is not None,
            "loras": model.loras is not None,
            "rank": model.judge is not None,
        },
    }


__all__ = ["card_of", "described"]
