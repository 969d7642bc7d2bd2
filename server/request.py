"""A request for images, in words that are no particular door's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRequest:
    """Holds what a client asks for, unchecked: a door sees to types, Wish.of to limits. None: nothing was said."""

    model: str | None = None  # an id
    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None  # pixels
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    seed: int | None = None  # 0 to 2**32 - 1, of picture 0
    images: int | None = None
    format: str | None = None  # "png", "jpeg" or "webp"
    preview_every: int | None = None  # steps; 0: no previews
    priority: int | None = None  # higher is seated first
    long_prompt: bool | None = None
    prompt_weights: bool | None = None
    clip_skip: int | None = None  # last layers of the text encoder to leave out
    guidance_start: float | None = None  # fractions of the steps that are made
    guidance_end: float | None = None
    init_image: bytes | None = None  # a PNG, JPEG or WebP file
    strength: float | None = None  # 0 to 1
    mask: bytes | None = None  # a file of the same sides; white is redrawn
    fit: str | None = None  # "crop", "resize" or "pad"
    style_image: bytes | None = None  # a PNG, JPEG or WebP file of any sides
    style_weight: float | None = None  # 0 to 2
    loras: Sequence[tuple[str, float]] | None = None  # names, each with its weight
    keep: int | None = None  # of the pictures, those nearest to the prompt
    original_size: str | None = None  # "WIDTHxHEIGHT" in pixels, of SDXL, as the two below
    crop: str | None = None  # "LEFTxTOP"
    target_size: str | None = None
    quality: int | None = None  # of a jpeg or webp file, 0 to 100
    progress: bool | None = None  # False: no Started and no Step events
