"""Picture: the bytes a server sent, and what is known about them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from latentd.v1 import images_pb2 as pb

FORMATS = ("png", "jpeg", "webp")
FITS = ("crop", "resize", "pad")  # of a picture to begin with
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Timings:
    """Counts the milliseconds of one request, whatever its number of pictures.

    Those that end in _ms add up to its time in the server; `denoise_ms` was shared with those in `seats_shared`.
    """

    queue_ms: float
    encode_ms: float  # 0 when prompt and negative prompt were remembered
    denoise_ms: float  # from its first seat to the last step of all its pictures
    decode_ms: float  # latents to pixels, of the picture that was finished last
    seats_shared: float  # mean number of live seats over the request's steps
    steps: int
    evaluations: int  # of the UNet, per picture
    decode_wait_ms: float = 0.0  # for the decoder, behind other pictures; before decode_ms
    file_ms: float = 0.0  # pixels to picture file
    delivery_ms: float = 0.0  # from the file to the end of the request
    read_ms: float = 0.0  # until the pictures that it came with were read, before queue_ms
    judge_ms: float = 0.0  # until all its pictures were judged, where some are kept; before file_ms

    @classmethod
    def of(cls, sent: pb.Timings) -> Timings:
        return cls(
            queue_ms=sent.queue_ms,
            encode_ms=sent.encode_ms,
            denoise_ms=sent.denoise_ms,
            decode_ms=sent.decode_ms,
            seats_shared=sent.seats_shared,
            steps=sent.steps,
            evaluations=sent.evaluations,
            decode_wait_ms=sent.decode_wait_ms,
            file_ms=sent.file_ms,
            delivery_ms=sent.delivery_ms,
            read_ms=sent.read_ms,
            judge_ms=sent.judge_ms,
        )


@dataclass(frozen=True)
class Picture:
    """Holds one finished picture. `timings` are those of its request; None when the call ended before they came."""

    data: bytes = field(repr=False)  # the file as sent, in `format`
    format: str  # png, jpeg or webp
    seed: int
    index: int  # within its request, from 0
    width: int  # pixels
    height: int  # pixels
    timings: Timings | None = None
    score: float | None = None  # where `keep` was said: how near to the prompt, as `rank` tells

    @classmethod
    def of(cls, sent: pb.Image, timings: Timings | None = None) -> Picture:
        # The enum counts from 1 in the order of FORMATS; 0, unspecified, is png.
        return cls(
            data=sent.data,
            format=FORMATS[max(sent.format, 1) - 1],
            seed=sent.seed,
            index=sent.index,
            width=sent.width,
            height=sent.height,
            timings=timings,
            score=sent.score if sent.HasField("score") else None,
        )

    @cached_property
    def image(self) -> PILImage.Image:
        """Return the decoded picture, RGB; decoded once, and the same object each time."""
        from PIL import Image

        return Image.open(BytesIO(self.data)).convert("RGB")

    @property
    def png(self) -> bytes:
        """Return a PNG file: as sent, or encoded here when another format was asked for."""
        return self.encoded("png")

    def encoded(self, format: str) -> bytes:
        """Return the picture as a file in `format`; the very bytes of the server when that is what it sent."""
        if format not in FORMATS:
            raise ValueError(f"format {format!r} is not one of {', '.join(FORMATS)}")
        if format == self.format:
            return self.data
        file = BytesIO()
        self.image.save(file, format.upper(), **({} if format == "png" else {"quality": 95}))
        return file.getvalue()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` in the format its suffix names (.png, .jpg, .jpeg, .webp). Raises ValueError, OSError."""
        path = Path(path)
        path.write_bytes(self.encoded(format_of(path)))
        return path


def format_of(path: Path) -> str:
    """Return the format that a path's suffix names. Raises ValueError."""
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}") from None
