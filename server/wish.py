"""A wish: what a request asks for, checked and with the defaults filled in."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from engines.model import Model
from pipeline.conditions.interval import WHOLE, Interval
from pipeline.conditions.original import STRENGTH, Encoded, steps_skipped
from pipeline.conditions.sizes import AS_IT_IS, Pair, Sizes
from pipeline.conditions.style import Style
from pipeline.errors import InvalidRequest
from pipeline.loras.shelf import Chosen
from pipeline.prompt import Prompt, read_prompts, weights_of
from pipeline.samplers import SAMPLERS, Table, table
from server.errors import UnknownFormat
from server.limits import Limits, checked_text, decimal, one_of, within
from server.request import ImageRequest
from server.upload import FITS

Size = tuple[int, int]  # width and height in pixels

STYLE_WEIGHT = 1.0  # diffusers' own
FORMATS = ("png", "jpeg", "webp")  # of picture files; the first is the default

Value = TypeVar("Value")


class LaneKey(NamedTuple):
    """Tells lanes apart: pictures of one size, prompts of one length, LoRAs of one rank."""

    width: int  # pixels
    height: int
    chunks: int  # of the prompt, each of the text encoder's length
    rank: int = 0  # that LoRAs are filled up to; 0: the model takes none

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.chunks}" + (f"r{self.rank}" if self.rank else "")


def engine_of(lane: LaneKey) -> str:
    """Name a lane's engine in a sentence."""
    loras = f", LoRAs of rank {lane.rank}" if lane.rank else ""
    return f"the engine for {lane.width}x{lane.height} and a prompt of {lane.chunks} chunks{loras}"


def default_size(model: Model, sizes: list[Size]) -> Size:
    """Return the model's default size where it is served, else the first size that is."""
    default = model.spec.defaults.width, model.spec.defaults.height
    return default if default in sizes else sizes[0]


@dataclass(frozen=True)
class Wish:
    """Holds a request that was checked, with the defaults filled in."""

    size: Size
    steps: int
    guidance: float
    sampler: str
    seed: int  # of picture 0
    images: int
    format: str
    quality: int | None  # of the file; None: the format's default
    preview_every: int
    priority: int
    table: Table
    prompt: Prompt
    negative: Prompt | None  # as many chunks as the prompt; None: unguided
    interval: Interval = WHOLE  # the part of the run that is guided
    fit: str = FITS[0]
    start: Encoded | None = None  # the picture that it begins with, once it is read and encoded
    style_weight: float = STYLE_WEIGHT
    sizes: Sizes = AS_IT_IS  # what SDXL's UNet is told of its size
    style: Style | None = None  # of the picture that it has a style from, once that is read and encoded
    keep: int | None = None  # of its pictures the so many nearest to `words` are delivered; None: all of them
    rank: int = 0  # that LoRAs are filled up to; 0: the model takes none
    loras: Chosen | None = None  # those that it names, once they have been read
    words: str = ""  # the prompt as the judge reads it: without brackets that weigh

    @cached_property
    def lane(self) -> LaneKey:
        width, height = self.size
        return LaneKey(width, height, self.prompt.chunks, self.rank)

    def rows(self, reached: int) -> int:
        """Return a picture's UNet rows in the evaluation after so many: two where it is guided, none after the last."""
        return self._rows_left[reached] - self._rows_left[reached + 1]

    def rows_left(self, reached: int = 0) -> int:
        """Count the UNet rows of all evaluations that a picture has before it after so many."""
        return self._rows_left[reached]

    @cached_property
    def _rows_left(self) -> Sequence[int]:
        rows = self.interval.inside(self.table) * (self.negative is not None) + 1
        return [*rows[::-1].cumsum()[::-1].tolist(), 0, 0]

    def picture_seed(self, index: int) -> int:
        return (self.seed + index) % 2**32

    @classmethod
    def of(cls, request: ImageRequest, model: Model, sizes: list[Size], limits: Limits) -> Wish:
        """Check every field. Errors: InvalidRequest naming field, value and limit."""
        default = model.spec.defaults
        prompt = checked_text("prompt", request.prompt or "", limits.prompt_characters)
        negative = checked_text("negative_prompt", request.negative_prompt or "", limits.prompt_characters)
        width, height = default_size(model, sizes)
        size = _or(request.width, width), _or(request.height, height)
        if size not in sizes:
            listed = ", ".join(f"{w}x{h}" for w, h in sizes)
            raise InvalidRequest(f"width x height is {size[0]}x{size[1]}; the sizes served are {listed}", "width")
        # A spacing needs at least one training step for each interval.
        most_steps = min(limits.steps, model.spec.schedule.train_steps - 1)
        steps = within("steps", _or(request.steps, default.steps), 1, most_steps)
        guidance = within("guidance", _or(request.guidance, default.guidance), 0.0, limits.guidance)
        sampler = one_of("sampler", _or(request.sampler, default.sampler), list(SAMPLERS))
        images = within("images", _or(request.images, 1), 1, limits.images)
        format = _or(request.format, FORMATS[0])
        if format not in FORMATS:
            raise UnknownFormat(f"format is {format[:64]!r}; it must be one of {', '.join(FORMATS)}", "format")
        if request.quality is not None:
            within("quality", request.quality, 0, 100)
            if format == "png":
                raise InvalidRequest(f"quality is {request.quality}; png has none, jpeg and webp have", "quality")
        skip = within("clip_skip", request.clip_skip or 0, 0, model.spec.skips)
        begin = _begin(request, model, steps)
        check_loras(request, model, limits)
        fit = one_of("fit", request.fit or FITS[0], list(FITS))
        prompts = read_prompts(
            model.tokenizer,
            [prompt, negative] if guidance > 1 and not model.spec.unet.guidance_width else [prompt],
            long=bool(request.long_prompt),
            weighted=bool(request.prompt_weights),
            skip=skip,
            zero_negative=model.spec.zero_negative,
        )
        return cls(
            size=size,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=secrets.randbelow(2**32) if request.seed is None else within("seed", request.seed, 0, 2**32 - 1),
            images=images,
            format=format,
            quality=request.quality,
            preview_every=within("preview_every", request.preview_every or 0, 0, 2**32 - 1),
            priority=within("priority", request.priority or 0, -(2**31), 2**31 - 1),
            table=table(model.spec.schedule, sampler, steps, begin),
            prompt=prompts[0],
            negative=prompts[1] if len(prompts) == 2 else None,
            interval=_interval(request, model),
            fit=fit,
            style_weight=_style_weight(request, model, limits),
            rank=model.rank,
            sizes=_sizes(request, model, limits),
            keep=_keep(request, model, images),
            words="".join(words for words, _ in weights_of(prompt)) if request.prompt_weights else prompt,
        )


def _begin(request: ImageRequest, model: Model, steps: int) -> int:
    """Return how many steps are not made, for a picture to begin with. Errors: InvalidRequest."""
    if request.init_image is None:
        for field in ("mask", "strength", "fit"):
            if getattr(request, field) is not None:
                raise InvalidRequest(f"{field} needs a picture to begin with; init_image is missing", field)
    if model.spec.inpaints and (request.init_image is None or request.mask is None):
        raise InvalidRequest(
            f"{model.id} is an inpainting model; it needs init_image and mask",
            "mask" if request.init_image else "init_image",
        )
    if request.init_image is None:
        return 0
    strength = within("strength", decimal(_or(request.strength, STRENGTH)), 0.0, 1.0)
    begin = steps_skipped(steps, strength)
    if begin == steps:
        least = math.ceil(1000 / steps) / 1000
        raise InvalidRequest(
            f"strength is {strength:g}, which makes none of {steps} steps; give {least:g} or more", "strength"
        )
    return begin


def _interval(request: ImageRequest, model: Model) -> Interval:
    """Return which part of the run is guided. Errors: InvalidRequest."""
    start = within("guidance_start", decimal(_or(request.guidance_start, 0.0)), 0.0, 1.0)
    end = within("guidance_end", decimal(_or(request.guidance_end, 1.0)), 0.0, 1.0)
    if start >= end:
        raise InvalidRequest(
            f"guidance_start is {start:g}; it must be less than guidance_end, which is {end:g}", "guidance_start"
        )
    if (start, end) != (0.0, 1.0) and model.spec.unet.guidance_width:
        raise InvalidRequest(
            f"guidance_start and guidance_end: {model.id} takes its guidance in and is never unguided", "guidance_end"
        )
    return Interval(start, end)


def _style_weight(request: ImageRequest, model: Model, limits: Limits) -> float:
    """Return how much a style weighs. Errors: InvalidRequest, also for a style that this model has no adapter for."""
    if request.style_image is None and request.style_weight is not None:
        raise InvalidRequest(
            "style_weight needs a picture to take a style from; style_image is missing", "style_weight"
        )
    if request.style_image is not None and model.styles is None:
        raise InvalidRequest(
            f"style_image: {model.id} has no style adapter; the server's setting --style-adapter names one",
            "style_image",
        )
    return within("style_weight", decimal(_or(request.style_weight, STYLE_WEIGHT)), 0.0, limits.style_weight)


def check_loras(request: ImageRequest, model: Model, limits: Limits) -> None:
    """Check how many LoRAs a request names, and their weights. Errors: InvalidRequest, also where there are none."""
    if not request.loras:
        return
    if model.loras is None:
        raise InvalidRequest(f"loras: {model.id} takes none; the server's setting --loras names a folder", "loras")
    if len(request.loras) > limits.loras:
        raise InvalidRequest(f"loras are {len(request.loras)}; at most {limits.loras} are taken", "loras")
    for number, (name, weight) in enumerate(request.loras):
        checked_text(f"loras[{number}].name", name, limits.lora_name)
        within(f"loras[{number}].weight", decimal(weight), -limits.lora_weight, limits.lora_weight)


def _sizes(request: ImageRequest, model: Model, limits: Limits) -> Sizes:
    """Return what SDXL's UNet is told of sizes. Errors: InvalidRequest, also for a model that is told of none."""

    def pair(field: str, least: int) -> Pair | None:
        text: str | None = getattr(request, field)
        if not text:
            return None
        if not model.spec.unet.size_width:
            raise InvalidRequest(f"{field}: {model.id} is told of no sizes, as SDXL's models are", field)
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text, re.ASCII)
        sides = (int(match[1]), int(match[2])) if match else (-1, -1)
        if min(sides) < least or max(sides) > limits.side:
            words = "LEFTxTOP" if field == "crop" else "WIDTHxHEIGHT"
            raise InvalidRequest(f"{field} is {text[:64]!r}; it takes {words}, each {least} to {limits.side}", field)
        return sides

    return Sizes(pair("original_size", 1), pair("crop", 0) or (0, 0), pair("target_size", 1))


def _keep(request: ImageRequest, model: Model, images: int) -> int | None:
    """Return how many pictures are kept. Errors: InvalidRequest, also where there is no judge."""
    if request.keep is None:
        return None
    if model.judge is None:
        raise InvalidRequest(f"keep: {model.id} has no judge; the server's setting --judge names one", "keep")
    if not 1 <= request.keep <= images:
        raise InvalidRequest(f"keep is {str(request.keep)[:64]}; it must be 1 to images, which is {images}", "keep")
    return request.keep


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
