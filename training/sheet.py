"""Sheets of pictures to look at, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.arrays import Pixels, to_pixels
from training.files import write


def pictures_of(batch: Tensor) -> list[Pixels]:
    """Turn [n, 3, H, W] in -1..1 into pixels."""
    return [to_pixels(picture) for picture in batch.detach().float().cpu().numpy()]


def sheet(pictures: Sequence[Pixels], columns: int, captions: Sequence[str] = (), enlarge: int = 1) -> Image.Image:
    """Lay pictures out in rows, with captions below where there are some."""
    side = max(picture.shape[0] for picture in pictures) * enlarge
    room = 30 if captions else 0
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (side + 4) + 4, rows * (side + room + 4) + 4), "#888888")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for i, picture in enumerate(pictures):
        x, y = 4 + i % columns * (side + 4), 4 + i // columns * (side + room + 4)
        whole.paste(
            Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), Image.Resampling.NEAREST), (x, y)
        )
        if captions:
            pen.rectangle((x, y + side, x + side - 1, y + side + room - 1), fill="white")
            pen.multiline_text(
                (x + 2, y + side + 1), _wrapped(captions[i], side, font), fill="black", font=font, spacing=1
            )
    return whole


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width - 4 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines[:2])


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture. Errors: TrainingError."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    write(path, data.getvalue())
