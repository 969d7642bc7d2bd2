"""The arguments of `generate` as a GenerateRequest; the same for both clients.

Only what the wire cannot carry is refused here: the limits are the server's, and its words name field, value and limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import inf
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from latentd.picture import FORMATS
from latentd.v1 import images_pb2 as pb
from latentd.variables import meant

if TYPE_CHECKING:
    from PIL import Image

Upload: TypeAlias = "bytes | str | os.PathLike[str] | Image.Image"  # a file's bytes, its path, or a picture of PIL's
UINT32 = 2**32 - 1
_COUNTS = {"width": 1, "height": 1, "steps": 1, "images": 1, "keep": 1, "preview_every": 0, "clip_skip": 0}  # from
# What other libraries call ours.
_ELSEWHERE = {
    "size": "width and height",
    "n": "images",
    "num_images_per_prompt": "images",
    "negative": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "sampler_name": "sampler",
    "scheduler": "sampler",
    "image": "init_image",
    "mask_image": "mask",
    "ip_adapter_image": "style_image",
}
_FORMATS = dict(zip(FORMATS, (pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP), strict=True))


class Options(TypedDict, total=False):
    """Holds what a request may say beside its prompt. None: the model's own default, which `models` tells."""

    negative_prompt: str
    width: int | None  # pixels; width and height together one of the model's sizes
    height: int | None
    steps: int | None  # 1..150
    guidance: float | None  # 0..30; <= 1 is unguided and costs half
    sampler: str | None  # such as "dpmpp_2m"
    seed: int | None  # 0..2^32-1; None: drawn by the server; picture k uses seed + k
    images: int | None  # 1..8
    format: str  # "png", "jpeg" or "webp"
    preview_every: int  # a Preview after every n-th step; 0: none
    priority: (
        int  # higher comes first: batch is 0, interactive 1; above 0 only where the server's configuration says so
    )
    model: str  # an id; "": the server's only or first model
    long_prompt: bool  # encode past the encoder's length, in chunks
    prompt_weights: bool  # (words:1.3) weigh more
    clip_skip: int  # leave out so many of the text encoder's last layers
    guidance_start: float | None  # 0..1, as fractions of the steps made: which of them are guided; None: 0
    guidance_end: float | None  # None: 1
    init_image: Upload | None  # the picture to begin with: PNG, JPEG or WebP, at most 16 megapixels
    strength: float | None  # 0..1: of the steps so much is made; None: 0.8
    mask: Upload | None  # as large as init_image: white is redrawn, black stays to the bit
    fit: str  # of init_image to width x height: "crop" ("" too), "resize" or "pad"
    style_image: Upload | None  # a picture to take a style from, where the model has a style adapter
    style_weight: float | None  # 0..2; None: 1
    loras: Mapping[str, float] | Sequence[tuple[str, float]] | None  # names that `models` tells, each with its weight
    keep: int | None  # 1..images: those that the judge finds nearest to the prompt; None: all, unjudged
    original_size: str  # SDXL: as if it had been so large, "WIDTHxHEIGHT"; "": as large as it is
    crop: str  # and cropped at this corner, "LEFTxTOP"; "": not
    target_size: str  # to this size; "": as large as it is
    quality: int | None  # 0..100, of a jpeg or webp file
    progress: bool  # False: no Started and no Step events, which `generate` asks for where nobody sees its events


def request_of(prompt: str, options: Options) -> pb.GenerateRequest:
    """Build the message of a call. Raises as build_request does, and TypeError for an option that there is not."""
    unknown = next((name for name in options if name not in Options.__annotations__), None)
    if unknown is not None:
        theirs = _ELSEWHERE.get(unknown)
        near = f"; did you mean {theirs}?" if theirs else meant(unknown, list(Options.__annotations__))
        raise TypeError(f"there is no option {unknown!r}{near}; there are: {', '.join(Options.__annotations__)}")
    return build_request(prompt, **options)


def build_request(
    prompt: str,
    *,
    negative_prompt: str = "",
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    seed: int | None = None,
    images: int | None = None,
    format: str = "png",
    preview_every: int = 0,
    priority: int = 0,
    model: str = "",
    long_prompt: bool = False,
    prompt_weights: bool = False,
    clip_skip: int = 0,
    guidance_start: float | None = None,
    guidance_end: float | None = None,
    init_image: Upload | None = None,
    strength: float | None = None,
    mask: Upload | None = None,
    fit: str = "",
    style_image: Upload | None = None,
    style_weight: float | None = None,
    loras: Mapping[str, float] | Sequence[tuple[str, float]] | None = None,
    keep: int | None = None,
    original_size: str = "",
    crop: str = "",
    target_size: str = "",
    quality: int | None = None,
    progress: bool = True,
) -> pb.GenerateRequest:
    """Build a message from Options (units there). Raises ValueError for what none can hold, TypeError for another kind.

    A picture's file is read here: OSError. An empty prompt is one like any other: what the model draws of itself.
    """
    texts = {"prompt": prompt, "negative_prompt": negative_prompt, "model": model, "fit": fit}
    texts |= {"original_size": original_size, "crop": crop, "target_size": target_size}
    for name, text in texts.items():
        _check_text(name, text)
    if sampler is not None:
        _check_text("sampler", sampler)
    counts = {"width": width, "height": height, "steps": steps, "images": images, "keep": keep}
    counts = {name: None if value is None else _count(name, value) for name, value in counts.items()}
    counts["seed"] = None if seed is None else _whole("seed", seed, 0, UINT32)
    counts["quality"] = None if quality is None else _whole("quality", quality, 0, 100)
    preview_every, clip_skip = _count("preview_every", preview_every), _count("clip_skip", clip_skip)
    priority = _whole("priority", priority, -(2**31), 2**31 - 1)
    flags: dict[str, object] = {"long_prompt": long_prompt, "prompt_weights": prompt_weights, "progress": progress}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}; it takes True or False")
    if format not in _FORMATS:
        raise ValueError(f"format {format!r} is not one of {', '.join(_FORMATS)}")
    return pb.GenerateRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        sampler=sampler,
        format=_FORMATS[format],
        preview_every=preview_every,
        priority=priority,
        model=model,
        long_prompt=long_prompt,
        prompt_weights=prompt_weights,
        clip_skip=clip_skip,
        progress=None if progress else False,  # type: ignore[arg-type] - its stub forgets that it is optional
        init_image=_file("init_image", init_image),
        mask=_file("mask", mask),
        style_image=_file("style_image", style_image),
        loras=_loras(loras),
        fit=fit,
        original_size=original_size,
        crop=crop,
        target_size=target_size,
        guidance=_optional("guidance", guidance),
        guidance_start=_optional("guidance_start", guidance_start),
        guidance_end=_optional("guidance_end", guidance_end),
        strength=_optional("strength", strength),
        style_weight=_optional("style_weight", style_weight),
        **counts,
    )


def _loras(loras: Mapping[str, float] | Sequence[tuple[str, float]] | None) -> list[pb.Lora]:
    """Return messages of names and weights. Raises TypeError, ValueError."""
    pairs = loras.items() if isinstance(loras, Mapping) else loras or ()
    if isinstance(pairs, str | bytes):
        raise TypeError(f"loras is {pairs!r}; it takes names with weights, such as {{'name': 0.8}}")
    messages: list[pb.Lora] = []
    for pair in pairs:
        if isinstance(pair, str | bytes) or len(pair) != 2:
            raise TypeError(f"loras has {pair!r}; each is a name and a weight")
        name, weight = pair
        _check_text("loras", name)
        messages.append(pb.Lora(name=name, weight=_number("loras", weight)))
    return messages


def build_ranking(pictures: Sequence[Upload], texts: Sequence[str], model: str = "") -> pb.RankRequest:
    """Build a message from pictures and texts. Raises as build_request does."""
    for name, text in (("model", model), *((f"texts[{number}]", text) for number, text in enumerate(texts))):
        _check_text(name, text)
    files = [_file(f"pictures[{number}]", picture) for number, picture in enumerate(pictures)]
    return pb.RankRequest(model=model, pictures=files, texts=texts)


def check_timeout(timeout: float | None) -> float | None:
    """Return the seconds that a call may take; None: as long as it takes. Raises TypeError, ValueError."""
    if timeout is None:
        return None
    seconds = _number("timeout", timeout)
    if not 0 < seconds < inf:
        raise ValueError(f"timeout {timeout} is not a number of seconds above 0; None waits for as long as it takes")
    return seconds


def _file(name: str, upload: Upload | None) -> bytes:
    """Return the bytes of a picture's file; a picture of PIL's becomes a PNG. Raises OSError, TypeError."""
    if upload is None:
        return b""
    if isinstance(upload, bytes | bytearray | memoryview):
        return bytes(upload)
    if isinstance(upload, str | os.PathLike):
        try:
            return read_upload(name, os.fspath(upload))
        except OSError as error:  # OSError makes the class of its number: a FileNotFoundError stays one
            raise OSError(error.errno, f"{name}: {error.strerror or error}", os.fspath(upload)) from None
    if not hasattr(upload, "save"):
        raise TypeError(f"{name} is of type {type(upload).__name__}; it takes bytes, a path or a picture of PIL's")
    file = BytesIO()
    upload.save(file, "png")
    return file.getvalue()


def read_upload(name: str, path: str) -> bytes:
    """Read a picture's file; `name` is what the caller calls it. Raises ValueError for a URL, OSError."""
    if re.match(r"[a-z][a-z0-9+.-]*://|data:", path, re.IGNORECASE):
        raise ValueError(f"{name} is {path[:64]!r}, a URL; it takes a file on this machine, and no URL is fetched")
    return Path(path).read_bytes()


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r}; it takes text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Lone surrogates: how Python hands on command-line bytes that are not UTF-8.
        raise ValueError(f"{name} is not valid UTF-8 at character {error.start}") from None


def _whole(name: str, value: int, least: float = -inf, most: float = inf) -> int:
    try:
        number = index(value)  # numpy's integers too
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it takes a whole number") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {value}; it must be {least} to {most}")
    return number


def _count(name: str, value: int) -> int:
    """Check what the model bounds above: the server says by what, and here only what no message can hold is refused."""
    number, least = _whole(name, value), _COUNTS[name]
    if not 0 <= number <= UINT32:
        raise ValueError(f"{name} is {number}; it must be {least} or more, up to the model's limit")
    return number


def _optional(name: str, value: float | None) -> float | None:
    return None if value is None else _number(name, value)


def _number(name: str, value: float) -> float:
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} is {value!r}; it takes a number")
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise TypeError(f"{name} is {value!r}; it takes a number") from None
