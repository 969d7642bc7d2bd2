"""Bodies of OpenAI's images API: generations and edits as its clients send them, and our own fields beside theirs."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InvalidRequest
from server.doors.http.pictures import Picture
from server.request import ImageRequest

# What OpenAI calls the fields of ImageRequest.
NAMES = {"width": "size", "height": "size", "images": "n", "format": "output_format", "quality": "output_compression"}
NAMES |= {"init_image": "image"}
FILES = ("image", "mask", "style_image")


class Generation(BaseModel):
    """A request for images as OpenAI's clients send it, and our own fields beside theirs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(description="What the picture shows.")
    model: str | None = Field(None, description="The id of the model served.")
    n: int | None = Field(None, description="How many pictures; 1 with stream.")
    size: str | None = Field(None, description="WIDTHxHEIGHT, one of the sizes served, or auto.", examples=["auto"])
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json; url is refused.")
    output_format: str | None = Field(None, description="png, jpeg or webp.")
    output_compression: int | None = Field(None, description="Quality of jpeg and webp, 0 to 100.")
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description="Pictures are opaque.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(None, description="Previews of the forming picture in a stream, 0 to 3.")
    moderation: Literal["low", "auto"] | None = Field(None, description="Without meaning here.")
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = Field(
        None, description="Without meaning here: steps says how finely a picture is drawn."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Without meaning here.")
    user: str | None = Field(None, description="Without meaning here.")
    safety_identifier: str | None = Field(None, description="Without meaning here.")
    negative_prompt: str | None = Field(None, description="Ours: what the picture should not show.")
    steps: int | None = Field(None, description="Ours. The model's default, as of all that follow.")
    guidance: float | None = Field(None, description="Ours: how closely to follow the prompt.")
    sampler: str | None = Field(None, description="Ours.")
    seed: int | None = Field(None, description="Ours: of the first picture, 0 to 4294967295; else drawn.")
    clip_skip: int | None = Field(None, description="Ours: last layers of the text encoder to leave out.")
    long_prompt: bool | None = Field(None, description="Ours: encode past the text encoder's length.")
    prompt_weights: bool | None = Field(None, description="Ours: (words:1.3) weigh more.")
    priority: int | None = Field(None, description="Ours: higher is seated first.")
    guidance_start: float | None = Field(None, description="Ours: guide from this fraction of the steps on, 0 to 1.")
    guidance_end: float | None = Field(None, description="Ours: guide up to this fraction of the steps, 0 to 1.")
    style_image: Picture | None = Field(None, description="Ours: a picture to take a style from, in base64.")
    style_weight: float | None = Field(None, description="Ours: how much of that style, 0 to 2.")
    loras: dict[str, float] | None = Field(None, description="Ours: LoRAs by name, each with its weight.")
    keep: int | None = Field(None, description="Ours: of n pictures the so many nearest to the prompt.")
    original_size: str | None = Field(None, description="Ours, SDXL: as if it had been so large, WIDTHxHEIGHT.")
    crop: str | None = Field(None, description="Ours, SDXL: and cropped at this corner, LEFTxTOP.")
    target_size: str | None = Field(None, description="Ours, SDXL: to this size, WIDTHxHEIGHT.")


class Edit(Generation):
    """A form as OpenAI's clients send it beside the files `image` and perhaps `mask`."""

    model_config = ConfigDict(extra="forbid", strict=False)  # a form has text alone

    input_fidelity: Literal["low", "high"] | None = Field(None, description="Without meaning here.")
    strength: float | None = Field(None, description="Ours: how much of the picture is drawn anew, 0 to 1.")
    fit: str | None = Field(None, description="Ours: crop, resize or pad, where the sides are others.")


def image_request(body: Generation) -> ImageRequest:
    """Read a body; a size that cannot be read is refused with InvalidRequest."""
    width = height = None
    if body.size not in (None, "auto"):
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", body.size, re.ASCII)
        if not match:
            raise InvalidRequest(f"size is {body.size[:64]!r}; it takes WIDTHxHEIGHT, or auto", "size")
        width, height = int(match[1]), int(match[2])
    # OpenAI's clients may send 100, its default, with a png, which has no quality.
    lossless = body.output_compression == 100 and body.output_format in (None, "png")
    return ImageRequest(
        model=body.model,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        steps=body.steps,
        guidance=body.guidance,
        sampler=body.sampler,
        seed=body.seed,
        images=body.n,
        format=body.output_format,
        priority=body.priority,
        long_prompt=body.long_prompt,
        prompt_weights=body.prompt_weights,
        clip_skip=body.clip_skip,
        guidance_start=body.guidance_start,
        guidance_end=body.guidance_end,
        style_image=body.style_image,
        style_weight=body.style_weight,
        loras=[(name, weight) for name, weight in (body.loras or {}).items()] or None,
        keep=body.keep,
        original_size=body.original_size,
        crop=body.crop,
        target_size=body.target_size,
        strength=body.strength if isinstance(body, Edit) else None,
        fit=body.fit if isinstance(body, Edit) else None,
        quality=None if lossless else body.output_compression,
    )


__all__ = ["FILES", "NAMES", "Edit", "Generation", "image_request"]
