"""The arithmetic between two UNet calls."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays import to_pixels
from pipeline.conditions.mask import Inpaint
from pipeline.samplers.table import summands
from pipeline.update import combine, guide, keep


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def test_guidance() -> None:
    positive, negative = normal(2, 3, 4, 5)
    kept = positive.copy(), negative.copy()
    for scale in (0.0, 1.0, 7.5):
        guided = guide(positive, negative, scale)
        assert guided.dtype == np.float32
        np.testing.assert_allclose(guided, negative + scale * (positive - negative), atol=1e-5)
        assert np.array_equal(guide(positive, negative, scale, into := np.empty_like(positive)), into)
        assert np.array_equal(into, guided)
    assert np.array_equal(positive, kept[0]) and np.array_equal(negative, kept[1])


def test_a_row_of_a_table() -> None:
    terms, coefficients = normal(7, 3, 4, 4), np.array([0.5, 0, -2, 0, 0, 1.25, 0], np.float32)
    total = combine(summands(coefficients), terms)
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, np.tensordot(coefficients, terms, axes=1), atol=1e-6)


def test_what_has_no_coefficient_does_not_enter() -> None:
    terms = normal(3, 2, 2)
    second = summands(np.array([0, 1, 0], np.float32))
    wanted = combine(second, terms)
    terms[[0, 2]] = np.nan, np.inf
    assert np.array_equal(combine(second, terms), wanted)
    assert not combine(summands(np.zeros(3, np.float32)), terms).any()


def test_pixels_are_rounded_as_diffusers_rounds() -> None:
    picture = np.array([-9, -1, -0.996, 0, 0.25, 0.999, 1, 9], np.float32).reshape(1, 2, 4).repeat(3, axis=0)
    pixels = to_pixels(picture)
    assert pixels.shape == (2, 4, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert pixels[..., 0].ravel().tolist() == [0, 0, 1, 128, 159, 255, 255, 255]  # 127.5 and 0.51; half to even


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_mask() -> None:
    x, noise, original = normal(2, 3, 4, 4)[0], normal(3, 3, 4, 4)[2], normal(4, 3, 4, 4)[3]
    mask = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    level = np.array([0.75, 3], np.float32)
    kept = keep(x, Inpaint(mask, original), noise, level)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, mask * x + (1 - mask) * (0.75 * original + 3 * noise), atol=1e-6)
    x[0, 3, 3], original[:, 3, 3] = -0.0, np.inf
    ones = keep(x, Inpaint(np.ones_like(mask), original), noise, level)
    assert ones.tobytes() == x.tobytes(), "not a bit, whatever would have stayed"
    noise[:] = np.nan
    assert np.isfinite(keep(x, Inpaint(mask, np.zeros_like(x)), noise, np.array([1, 0], np.float32))).all()
