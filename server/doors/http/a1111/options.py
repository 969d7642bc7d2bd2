"""Options as AUTOMATIC1111 has them: what is set may be read, and set to what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.model import Model
from pipeline.errors import InvalidRequest

CHECKPOINT, CLIP_SKIP, FORMAT, QUALITY = (
    *("sd_model_checkpoint", "CLIP_stop_at_last_layers", "samples_format", "jpeg_quality"),
)
_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
PREVIEW_STEPS = 5  # between previews of the forming picture, which GET /progress shows


def title_of(model: Model) -> str:
    """Return a model's title as A1111 writes it, name and the beginning of its hash."""
    return f"{model.id} [{model.digest[:10]}]"


def names_of(model: Model) -> set[str]:
    """List what a client may call the model."""
    return {model.id, model.digest, model.digest[:10], title_of(model)}


def current(model: Model) -> dict[str, Any]:
    return {
        CHECKPOINT: title_of(model),
        "sd_checkpoint_hash": model.digest,
        CLIP_SKIP: 1,
        FORMAT: "png",
        "show_progress_every_n_steps": PREVIEW_STEPS,
        "live_previews_image_format": "jpeg",
        "enable_emphasis": True,
        "samples_save": False,
        "grid_save": False,
    }


def refuse_others(options: Mapping[str, Any], model: Model) -> None:
    """Errors: InvalidRequest for an option that is not set to what is sent; one server has one model's options."""
    settled = current(model)
    for name, value in options.items():
        same = value in names_of(model) if name == CHECKPOINT and isinstance(value, str) else value == settled.get(name)
        if name not in settled:
            raise InvalidRequest(f"{name[:64]} is no option of this server; there are: {', '.join(settled)}", name[:64])
        if not same:
            raise InvalidRequest(
                f"{name} is {str(value)[:64]!r}; it is {settled[name]!r} for everybody, and cannot be set", name
            )


def of_request(overrides: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Read override_settings: fields of ImageRequest. Errors: InvalidRequest for what one request cannot override."""
    fields: dict[str, Any] = {}
    rest = dict(overrides)
    if (layers := rest.pop(CLIP_SKIP, None)) is not None:
        most = model.spec.skips + 1
        if not isinstance(layers, int) or not 1 <= layers <= most:
            raise InvalidRequest(f"{CLIP_SKIP} is {str(layers)[:64]}; it takes a whole number, 1 to {most}", CLIP_SKIP)
        fields["clip_skip"] = layers - 1
    if (format := rest.pop(FORMAT, None)) is not None:
        if not isinstance(format, str) or format not in _FORMATS:
            raise InvalidRequest(f"{FORMAT} is {str(format)[:64]!r}; there are: {', '.join(_FORMATS)}", FORMAT)
        fields["format"] = _FORMATS[format]
    quality = rest.pop(QUALITY, None)
    if quality is not None and fields.get("format", "png") != "png":
        if not isinstance(quality, int):
            raise InvalidRequest(f"{QUALITY} is {str(quality)[:64]}; it takes a whole number", QUALITY)
        fields["quality"] = quality
    refuse_others(rest, model)
    return fields


__all__ = [
    "CHECKPOINT",
    "CLIP_SKIP",
    "FORMAT",
    "PREVIEW_STEPS",
    "QUALITY",
    "current",
    "of_request",
    "refuse_others",
    "title_of",
]
