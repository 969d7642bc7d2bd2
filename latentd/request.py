"""The arguments of `generate` as a GenerateRequest; the same for both clients.

Only what the wire cannot carry is refused here: the limits are the server's, and its words name field, value and limit.
"""

from __future__ import annotations

from typing import TypedDict

from latentd.picture import FORMATS
from latentd.v1 import images_pb2 as pb

UINT32 = 2**32 - 1
_FORMATS = dict(zip(FORMATS, (pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP), strict=True))


class Options(TypedDict, total=False):
    """What may be said about a request beside its prompt. None: the model's own default, which `models` tells."""

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
    priority: int  # higher is seated first
    model: str  # an id; "": the server's only or first model
    long_prompt: bool  # encode past the encoder's length, in chunks
    prompt_weights: bool  # (words:1.3) weigh more
    clip_skip: int  # leave out so many of the text encoder's last layers


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
) -> pb.GenerateRequest:
    """See Options for meanings and units. Raises ValueError for what a message cannot hold."""
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        _check_text(name, text)
    counts = {"width": width, "height": height, "steps": steps, "seed": seed, "images": images}
    for name, value in {**counts, "preview_every": preview_every, "clip_skip": clip_skip}.items():
        if value is not None and not 0 <= value <= UINT32:
            raise ValueError(f"{name} {value} is outside 0..{UINT32}")
    if not -(2**31) <= priority < 2**31:
        raise ValueError(f"priority {priority} is outside {-(2**31)}..{2**31 - 1}")
    if format not in _FORMATS:
        raise ValueError(f"format {format!r} is not one of {', '.join(_FORMATS)}")
    return pb.GenerateRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance=guidance,
        sampler=sampler,
        format=_FORMATS[format],
        preview_every=preview_every,
        priority=priority,
        model=model,
        long_prompt=long_prompt,
        prompt_weights=prompt_weights,
        clip_skip=clip_skip,
        **counts,
    )


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Lone surrogates: how Python hands on command-line bytes that are not UTF-8.
        raise ValueError(f"{name} is not valid UTF-8 at character {error.start}") from None
