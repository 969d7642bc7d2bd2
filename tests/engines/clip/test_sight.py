"""What a tower sees of a picture, against transformers' own processor."""

from __future__ import annotations

import numpy as np
import pytest

from engines.clip.sight import seen
from pipeline.checkpoint.clip import Sight
from tests.support.clips import pixels_of as picture
from tests.support.clips import sight_of as theirs

# A number is a byte over 255 over a deviation of 0.26: one more or less in a byte is 0.015.
TOLERANCE = 1e-4


@pytest.mark.parametrize("size", [(30, 30), (224, 224), (300, 517), (517, 300), (31, 97), (640, 11), (2, 3), (1, 64)])
@pytest.mark.parametrize("side", [224, 30])
def test_it_is_what_transformers_sees(size: tuple[int, int], side: int) -> None:
    pixels = picture(*size)
    got, wanted = seen(pixels, side, Sight()), theirs(pixels, side)
    assert got.shape == wanted.shape == (3, side, side) and got.dtype == np.float32
    assert np.abs(got - wanted).max() < TOLERANCE
    if min(size) > 2:
        assert np.abs(seen(pixels[::-1], side, Sight()) - wanted).max() > 100 * TOLERANCE, "upside down"


def test_mean_and_deviation_are_the_models() -> None:
    pixels, sight = picture(40, 50), Sight((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    wanted = theirs(pixels, 30, image_mean=list(sight.mean), image_std=list(sight.deviation))
    assert np.abs(seen(pixels, 30, sight) - wanted).max() < TOLERANCE


def test_a_picture_of_one_by_thirty_thousand_costs_no_more_than_another() -> None:
    """Its middle of 64 times its width is what is resized."""
    long = picture(1, 30_000)
    assert (seen(long, 224, Sight()) == theirs(np.ascontiguousarray(long[:, 14_968:15_032]), 224)).mean() > 0.99
    assert seen(long.transpose(1, 0, 2), 224, Sight()).shape == (3, 224, 224)
