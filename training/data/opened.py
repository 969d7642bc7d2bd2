"""The data that a recipe names, opened."""

from __future__ import annotations

from pathlib import Path

from training.data.drawn import DrawnPictures
from training.data.folder import FolderPictures
from training.data.glyphs import read_glyphs
from training.data.sample import Pictures
from training.data.shapes import SHAPES, shape_glyphs
from training.recipe import Recipe


def open_pictures(recipe: Recipe) -> Pictures:
    """Open the pictures. Errors: TrainingError naming the file or the key."""
    data = recipe.data
    if data.kind == "shapes":
        return DrawnPictures(shape_glyphs(), SHAPES, data, recipe.seed)
    assert data.folder is not None
    if data.kind == "folder":
        return FolderPictures(Path(data.folder), data.side, recipe.seed)
    things, glyphs = read_glyphs(Path(data.folder))
    return DrawnPictures(glyphs, things, data, recipe.seed)
