"""A picture's columns in Triton's interpreter: copies and zeros, so equal to the reference to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.columns import columns, cost, reference
from tests.kernels.ahead import compiled
from tests.kernels.comparing import normal, poisoned

# Lines and columns of one position, where both neighbours are outside; more channels than a program's 64, no multiple.
SHAPES = [(1, 8, 1, 1), (2, 8, 1, 5), (2, 8, 6, 1), (1, 3, 2, 2), (2, 72, 4, 5), (1, 64, 8, 8)]


def picture(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(n, c, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_at_its_nine_places_and_zeros_outside(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    x = picture(*shape, dtype=dtype)
    wanted = reference(x)
    out = poisoned(wanted)
    assert columns(x, out=out) is out and torch.equal(out, wanted)


def test_they_and_the_weights_make_the_convolution() -> None:
    """In float64: the order (ky, kx, c) is that of a weight's channels-last memory, and nothing is mirrored."""
    x, weight = picture(2, 5, 4, 6).double(), normal(7, 5, 3, 3).double()
    got = reference(x) @ weight.permute(0, 2, 3, 1).flatten(1).T
    wanted = F.conv2d(x, weight, padding=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_what_is_outside_is_zero_whatever_is_inside() -> None:
    x = torch.full((1, 8, 2, 2), torch.inf).contiguous(memory_format=torch.channels_last)
    assert set(columns(x).unique().tolist()) == {0.0, torch.inf}


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="picture has strides .* must be channels_last"):
        columns(normal(2, 8, 4, 4))
    with pytest.raises(ValueError, match="out has shape"):
        columns(picture(1, 8, 4, 4), out=torch.empty(1, 16, 8))
    far = torch.empty((1, 320, 1024, 1024), device="meta", memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="3019898880 numbers of columns, 2\\^31 are too many"):
        columns(far)
    assert columns(picture(1, 8, 4, 4)[:0]).shape == (0, 16, 72)


def test_the_floor() -> None:
    assert cost(2, 64, 1280).moved == 10 * 2 * 64 * 1280 * 2


def test_compiled() -> None:
    rows = compiled("columns", [("1280 @ 8x8 fp16", (80, 90, 120)), ("1920 @ 16x16 bf16", (90,))])
    assert len(rows) == 4
    for row in rows:
        assert not row["faults"] and row["ld"] == row["st"] == [16], row
