from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from engines.preview import ColourMap
from server.device import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def test_png_keeps_every_pixel() -> None:
    image = PILImage.open(io.BytesIO(pictures.encode(PIXELS, "png")))
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_are_close(format: str) -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, 20).astype(np.uint8)[None, :, None], (12, 20, 3))
    image = PILImage.open(io.BytesIO(pictures.encode(np.ascontiguousarray(smooth), format)))
    assert image.format == format.upper() and image.size == (20, 12)
    assert abs(np.asarray(image.convert("RGB")).astype(int) - smooth).max() <= 8, "of 255, at quality 90 and more"


def map_of(matrix: list[list[float]]) -> ColourMap:
    """A map of channels and 1 to red, green and blue that looks at no neighbour."""
    *channels, constant = np.array(matrix, np.float32).T
    place = np.eye(9, dtype=np.float32)[4]
    around = np.concatenate([np.outer(each, which).T for which in place[:, None] for each in channels])
    return ColourMap(np.concatenate([around, constant[None]]).T.reshape(3, -1), spread=9.0)


def test_a_preview_is_the_map_at_full_size() -> None:
    matrix = map_of([[1, 0, 0.5], [0, 1, 0.25], [0, 0, 1]])  # two channels and 1 to red, green, blue
    latents = np.stack([np.full((3, 5), 0.25), np.full((3, 5), -1)]).astype(np.float32)
    image = PILImage.open(io.BytesIO(pictures.preview(latents, matrix, 40, 24)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 24))
    expected = [0.75 * 255, 0, 255]  # green is below black
    assert abs(np.asarray(image).astype(int) - expected).max() <= 6, "of 255, at quality 80"


def test_a_preview_of_nonsense_is_still_a_picture() -> None:
    matrix = map_of([[1, 1]] * 3)
    for latents in ([[np.nan, np.inf], [-np.inf, 0]], [[np.inf, 1], [1, 1]], [[3e38, -3e38], [3e38, 0]]):
        preview = pictures.preview(np.array([latents], np.float32), matrix, 8, 8)
        assert PILImage.open(io.BytesIO(preview)).size == (8, 8)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_is_of_the_file(format: str) -> None:
    sizes = [len(pictures.encode(PIXELS, format, quality)) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))
    assert pictures.encode(PIXELS, "png") == pictures.encode(PIXELS, "png", None)
