"""Layer normalisation in Triton's interpreter against float64, and compiled ahead of time."""

from __future__ import annotations

import pytest
import torch

from kernels.layer_norm import cost, layer_norm, reference
from tests.support.ahead import compiled
from tests.support.comparing import HALF, SINGLE, assert_close, normal, poisoned

DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("positions", "width"), [(1, 1), (3, 5), (9, 48), (6, 320), (5, 640), (3, 1000), (2, 1280)])
def test_against_float64(positions: int, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = normal(positions, width, dtype=dtype), normal(width, dtype=dtype), normal(width, dtype=dtype)
    out = poisoned(x)
    assert layer_norm(x, weight, bias, 1e-5, out=out) is out
    # float32: sums of `width` and a few roundings of numbers up to about 5; fp16: the result's own rounding.
    assert_close(out, reference(x, weight, bias, 1e-5), SINGLE if dtype == torch.float32 else HALF)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("positions", "width"), [(1, 1), (3, 5), (9, 48), (6, 320), (3, 1000), (2, 1280)])
def test_a_shift_is_added_before_the_mean_is_taken(positions: int, width: int, dtype: torch.dtype) -> None:
    """In float32: fp16 would round a sum near 64 to 1/16, against a deviation of about 1."""
    x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((positions, width), (width,), (width,)))
    shift = (64 + normal(width, seed=1)).to(dtype)
    out = poisoned(x)
    assert layer_norm(x, weight, bias, 1e-5, shift=shift, out=out) is out
    # float32 rounds x + shift and their mean to 2^-18, which weights up to 4 spread; fp16: the result's rounding too.
    spread = 8 * 2.0**-18
    wanted = reference(x, weight, bias, 1e-5, shift=shift)
    assert_close(out, wanted, spread if dtype == torch.float32 else HALF + spread)
    assert torch.equal(layer_norm(x, weight, bias, 1e-5, shift=0 * shift), layer_norm(x, weight, bias, 1e-5))


def test_leading_dimensions_and_a_stride_between_positions() -> None:
    wide = normal(2, 3, 96)
    x, weight, bias = wide[..., :48], normal(48), normal(48)
    out = layer_norm(x, weight, bias, 1e-5)
    assert out.shape == (2, 3, 48) and out.is_contiguous()
    assert_close(out, reference(x, weight, bias, 1e-5), SINGLE)


def test_a_small_variance_about_a_large_mean() -> None:
    """E[x^2] - E[x]^2 would have no digit left: 1e8 against 1, in float32."""
    x = 1e4 + normal(4, 320)
    weight, bias = torch.ones(320), torch.zeros(320)
    # x itself has steps of 2^-10 here, the mean an error of some of them against a deviation of 1.
    assert_close(layer_norm(x, weight, bias, 1e-5), reference(x, weight, bias, 1e-5), 2e-3)


def test_a_constant_is_the_bias() -> None:
    x, bias = torch.full((3, 64), 7.0), normal(64)
    assert torch.equal(layer_norm(x, normal(64), bias, 1e-5), bias.expand(3, 64))


def test_a_position_does_not_depend_on_its_company() -> None:
    x, weight, bias = normal(11, 320), normal(320), normal(320)
    together = layer_norm(x, weight, bias, 1e-5)
    x_nan = x.clone()
    x_nan[::2] = torch.nan
    for i in (1, 5, 9):
        assert torch.equal(layer_norm(x[i : i + 1].clone(), weight, bias, 1e-5)[0], together[i])
    assert torch.equal(layer_norm(x_nan, weight, bias, 1e-5)[1::2], together[1::2])


def test_in_place() -> None:
    x, weight, bias = normal(7, 320), normal(320), normal(320)
    wanted = layer_norm(x, weight, bias, 1e-5)
    assert torch.equal(layer_norm(x, weight, bias, 1e-5, out=x), wanted)


def test_what_it_refuses() -> None:
    x, weight = normal(4, 64), normal(64)
    with pytest.raises(ValueError, match="x has strides"):
        layer_norm(x.T.contiguous().T, weight, weight, 1e-5)
    with pytest.raises(ValueError, match="weight has shape .63,.; it must be .64,."):
        layer_norm(x, weight[:63], weight, 1e-5)
    with pytest.raises(ValueError, match="shift has shape .2, 64.; it must be .64,."):
        layer_norm(x, weight, weight, 1e-5, shift=x[:2])
    with pytest.raises(ValueError, match="shift starts 4 bytes past a multiple of 16"):
        layer_norm(x, weight, weight, 1e-5, shift=normal(65)[1:])
    with pytest.raises(ValueError, match="x starts 4 bytes past a multiple of 16"):
        layer_norm(normal(65)[1:].view(1, 64), weight, weight, 1e-5)
    with pytest.raises(ValueError, match="x is torch.float64"):
        layer_norm(x.double(), weight, weight, 1e-5)
    assert layer_norm(x[:0], weight, weight, 1e-5).shape == (0, 64)


def test_the_floor_is_two_passes_over_memory() -> None:
    assert cost(8192, 320).moved == 2 * 8192 * 320 * 2 + 2 * 320 * 2
    assert cost(8192, 320, shift=True).moved - cost(8192, 320).moved == 320 * 2
    assert 2.0 < cost(8192, 320).microseconds() < 3.0


def test_compiled() -> None:
    """No spill, 16 bytes a load, and a warp a position: nothing to wait for."""
    some = [("320 fp16", (80, 90, 120)), ("1280 bf16", (90,)), ("1024 fp16", (90,)), ("320 shift fp16", (86, 90))]
    rows = compiled("layer_norm", [*some, ("1280 shift bf16", (120,))])
    assert len(rows) == 8
    for row in rows:
        assert not row["faults"], row
        assert row["ld"] == [16] and row["st"] == [16], row
        assert row["shared"] == 0 and row["barriers"] == 0, row
