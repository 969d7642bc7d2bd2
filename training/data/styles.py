"""Styles: two are drawn, each from a font of its own, and the others are functions of a picture in one of them."""

from __future__ import annotations

import numpy as np

from pipeline.arrays import Pixels

# Which glyphs a style is drawn with.
BASES = {"color": "color", "ink": "ink", "mosaic": "color", "night": "color", "outline": "color"}


def styled(picture: Pixels, style: str) -> Pixels:
    """Return a picture in a style."""
    if style == "mosaic":
        return _mosaic(picture)
    if style == "night":
        return (picture * np.array([0.22, 0.3, 0.6])).round().astype(np.uint8)
    if style == "outline":
        return _outline(picture)
    return picture


def _mosaic(picture: Pixels) -> Pixels:
    """Give every square of an eighteenth of a side, or so, its mean colour."""
    side = picture.shape[0]
    size = max(2, round(side / 18))
    starts = np.arange(0, side, size)
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), starts, 0), starts, 1)
    lengths = np.diff([*starts, side])
    means = sums / (lengths[:, None] * lengths)[..., None]
    return np.repeat(np.repeat(means, lengths, 0), lengths, 1).round().astype(np.uint8)


def _outline(picture: Pixels) -> Pixels:
    """Draw dark lines on white where neighbours differ."""
    grey = picture.astype(np.float64).mean(axis=2)
    down, right = np.diff(grey, axis=0, append=grey[-1:]), np.diff(grey, axis=1, append=grey[:, -1:])
    ink = np.clip(3 * np.hypot(down, right), 0, 255)
    return np.repeat((255 - ink).round().astype(np.uint8)[..., None], 3, axis=2)
