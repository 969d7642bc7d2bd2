"""A scene: which things are on a picture, and where; and the picture itself, put together from glyphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.arrays import Pixels
from training.data.styles import BASES, styled

# Grounds are light, so that black ink and coloured things stand out on them; on black ink is white.
GROUNDS = {
    "white": (255, 255, 255),
    "red": (240, 140, 130),
    "orange": (250, 190, 120),
    "yellow": (250, 235, 130),
    "green": (150, 215, 140),
    "blue": (140, 190, 250),
    "purple": (195, 155, 235),
    "pink": (252, 190, 220),
    "gray": (185, 185, 185),
    "black": (28, 28, 28),
}
JITTER = 9  # of each of a ground's three numbers, but for white's


@dataclass(frozen=True)
class Item:
    thing: str
    x: float  # of its middle, in sides of the picture
    y: float
    size: float  # of its longer side
    tilt: float = 0.0  # degrees against the clock


@dataclass(frozen=True)
class Scene:
    items: tuple[Item, ...]
    style: str
    ground: str = "white"
    shade: tuple[int, int, int] = GROUNDS["white"]


@dataclass(frozen=True)
class Glyph:
    """Holds one thing in one base style, in several sizes, so that whatever is drawn is shrunk by less than half."""

    levels: tuple[Image.Image, ...]  # RGBA, square, the largest first

    @classmethod
    def of(cls, picture: Image.Image) -> Glyph:
        """Trim a picture to what is seen of it, put that into the middle of a square, and shrink it step by step."""
        box = picture.getchannel("A").getbbox() or (0, 0, *picture.size)
        seen = picture.crop(box)
        side = max(seen.size)
        square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        square.paste(seen, ((side - seen.width) // 2, (side - seen.height) // 2))
        levels = [square.resize((96, 96), Image.Resampling.LANCZOS)]
        for size in (68, 48, 34, 24):
            levels.append(square.resize((size, size), Image.Resampling.LANCZOS))
        return cls(tuple(levels))

    def at(self, pixels: float) -> Image.Image:
        """Return the smallest level that is not enlarged to so many pixels."""
        return next((level for level in reversed(self.levels) if level.width >= pixels), self.levels[0])


Glyphs = Mapping[tuple[str, str], Glyph]  # by thing and base style


def draw(scene: Scene, glyphs: Glyphs, side: int) -> Pixels:
    """Draw a scene, [side, side, 3]."""
    base = BASES[scene.style]
    canvas = Image.new("RGB", (side, side), scene.shade)
    for item in scene.items:
        _put(canvas, glyphs[item.thing, base], item, inverted=base == "ink" and scene.ground == "black")
    return styled(np.asarray(canvas), scene.style)


def _put(canvas: Image.Image, glyph: Glyph, item: Item, *, inverted: bool) -> None:
    side, length = canvas.width, item.size * canvas.width
    level = glyph.at(length)
    scale, angle = level.width / length, math.radians(item.tilt)
    # Where a pixel of the canvas comes from: turned back around the thing's middle, and enlarged to the level's size.
    a, b = math.cos(angle) * scale, -math.sin(angle) * scale
    x, y, middle = item.x * side, item.y * side, level.width / 2
    matrix = (a, b, middle - a * x - b * y, -b, a, middle + b * x - a * y)
    drawn = level.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    if inverted:
        drawn = Image.merge(
            "RGBA", (*(drawn.getchannel(c).point(lambda v: 255 - v) for c in "RGB"), drawn.getchannel("A"))
        )
    canvas.paste(drawn, mask=drawn.getchannel("A"))
