"""Shapes that Pillow draws, in colour and in ink: the data of the tests, which no font is needed for."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from training.data.scene import Glyph

_SIDE = 96
_COLOURS = {
    "disc": "#d62728", "square": "#1f77b4", "triangle": "#2ca02c", "star": "#ff9f0e", "ring": "#9467bd",
    "cross": "#8c564b", "diamond": "#17becf", "moon": "#bcbd22",
}  # fmt: skip
SHAPES = tuple(_COLOURS)


def shape_glyphs() -> dict[tuple[str, str], Glyph]:
    """Draw every shape in both base styles."""
    return {(name, style): Glyph.of(_drawn(name, style)) for name in SHAPES for style in ("color", "ink")}


def _drawn(name: str, style: str) -> Image.Image:
    mask = Image.new("L", (_SIDE, _SIDE))
    pen, last = ImageDraw.Draw(mask), _SIDE - 4
    if name in ("disc", "ring", "moon"):
        pen.ellipse((3, 3, last, last), fill=255)
        if name != "disc":
            pen.ellipse((26, 26, last - 23, last - 23) if name == "ring" else (30, -8, last + 20, last - 12), fill=0)
    elif name == "cross":
        pen.rectangle((36, 3, 60, last), fill=255)
        pen.rectangle((3, 36, last, 60), fill=255)
    else:
        pen.polygon([(48 + 45 * x, 48 + 45 * y) for x, y in _corners(name)], fill=255)
    if style == "color":
        colour = Image.new("RGB", mask.size, _COLOURS[name])
    else:  # the rim alone is black
        colour = Image.new("RGB", mask.size, "white")
        inner = mask.resize((_SIDE - 20, _SIDE - 20))
        rim = Image.new("L", mask.size)
        rim.paste(inner, (10, 10))
        colour.paste("black", mask=Image.eval(rim, lambda v: 255 - v))
    return Image.merge("RGBA", (*colour.split(), mask))


def _corners(name: str) -> list[tuple[float, float]]:
    if name == "square":
        return [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    count, inner = {"triangle": (3, None), "diamond": (4, None), "star": (5, 0.42)}[name]
    angles = [(-math.pi / 2 + math.pi * k / count, 1.0 if k % 2 == 0 else inner) for k in range(2 * count)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in angles if r is not None]
