"""Reads the folder that `make demo-data` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from training.data.fonts import FONTS, THINGS, file_name
from training.data.scene import Glyph
from training.errors import TrainingError


def read_glyphs(folder: Path) -> tuple[list[str], dict[tuple[str, str], Glyph]]:
    """Return the things in their order, and their glyphs. Errors: TrainingError."""
    try:
        things = json.loads((folder / THINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{folder / THINGS} is not there: make demo-data draws it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{folder / THINGS} cannot be read: {error}") from None
    if not isinstance(things, list) or not all(isinstance(thing, str) and thing for thing in things):
        raise TrainingError(f"{folder / THINGS} must be a list of names")
    glyphs = {}
    for style in FONTS:
        for thing in things:
            path = folder / style / f"{file_name(thing)}.png"
            try:
                with Image.open(path) as picture:
                    glyphs[thing, style] = Glyph.of(picture.convert("RGBA"))
            except (OSError, ValueError, SyntaxError) as error:
                raise TrainingError(f"{path} cannot be read as a picture: {error}") from None
    return things, glyphs
