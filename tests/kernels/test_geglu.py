"""GEGLU in Triton's interpreter against float64, alone and inside its matrix product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernels.geglu import choose, cost, geglu, geglu_linear, interleave, linear_cost, reference
from tests.support.ahead import compiled
from tests.support.comparing import HALF, SINGLE, assert_close, normal, poisoned

DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 5), (17, 48), (33, 300), (5, 1280)])
def test_against_float64(rows: int, width: int, dtype: torch.dtype) -> None:
    x = 3 * normal(rows, 2 * width, dtype=dtype)
    out = poisoned(x[:, :width].contiguous())
    assert geglu(x, out=out) is out
    assert_close(out, reference(x), SINGLE if dtype == torch.float32 else HALF)


def test_gelu_keeps_its_digits_where_it_is_small() -> None:
    """1 + erf(g / sqrt 2) has one digit left at g = -5 in float32, this all of them: 9e-7 of the fit and the rounding
    of an exponent of up to 25, which moves the result by 25 x 2^-23."""
    gate = torch.linspace(-7, 7, 4001)
    x = torch.cat([torch.ones_like(gate), gate])[None]
    wanted = reference(x)
    assert ((geglu(x).double() - wanted).abs() <= 5e-6 * wanted.abs() + 1e-12).all()


def test_the_reference_is_torchs() -> None:
    x = normal(4, 64).double()
    value, gate = x.chunk(2, dim=-1)
    torch.testing.assert_close(reference(x), value * F.gelu(gate), rtol=1e-12, atol=1e-12)


def test_far_gates() -> None:
    gate = torch.tensor([-1e4, -60.0, 60.0, 1e4])
    x = torch.cat([torch.full((4,), 2.0), gate])[None]
    assert geglu(x).tolist() == [[0, 0, 120, 2e4]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "depth"), [(1, 4, 16), (5, 40, 48), (70, 96, 80), (129, 64, 320), (7, 33, 19)]
)
def test_the_product_against_float64(rows: int, width: int, depth: int, dtype: torch.dtype) -> None:
    x, bias = normal(rows, depth, dtype=dtype), normal(2 * width, dtype=dtype)
    weight = (normal(2 * width, depth) / depth**0.5).to(dtype)
    out = torch.full((rows, width), torch.nan, dtype=dtype)
    assert geglu_linear(x, *interleave(weight, bias), out=out) is out
    wanted = reference(F.linear(x.double(), weight.double(), bias.double()))
    # Products and sums in float32, of `depth` numbers of about 1/sqrt(depth); then as above.
    assert_close(out, wanted, SINGLE if dtype == torch.float32 else HALF)


def test_no_bias_and_leading_dimensions() -> None:
    x, weight = normal(2, 3, 32), normal(48, 32) / 6
    out = geglu_linear(x, *interleave(weight, None))
    assert out.shape == (2, 3, 24)
    assert_close(out, reference(F.linear(x.double(), weight.double())), SINGLE)


@pytest.mark.parametrize("arch", [80, 90])
def test_every_tile(arch: int) -> None:
    x, bias, weight = normal(130, 48), normal(160), normal(160, 48) / 7
    wanted = reference(F.linear(x.double(), weight.double(), bias.double()))
    for tile in {choose(rows, arch, 2) for rows in (128, 1024, 8192)}:
        assert_close(geglu_linear(x, *interleave(weight, bias), tile=tile), wanted, SINGLE)


def test_interleaved() -> None:
    weight, bias = interleave(torch.arange(6.0)[:, None], torch.arange(6.0))
    assert bias is not None and weight[:, 0].tolist() == bias.tolist() == [0, 3, 1, 4, 2, 5]


def test_a_row_does_not_depend_on_its_company() -> None:
    x, (weight, bias) = normal(100, 64), interleave(normal(96, 64), normal(96))
    together, gated = geglu_linear(x, weight, bias), geglu(x)
    x[::2] = torch.nan
    assert torch.equal(geglu_linear(x, weight, bias)[1::2], together[1::2])
    assert torch.equal(geglu(x)[1::2], gated[1::2])
    assert torch.equal(geglu(x[5:6].clone())[0], gated[5])


@pytest.mark.parametrize("arch", [80, 89, 90, 120])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_order_of_the_sum_does_not_depend_on_the_rows(arch: int, itemsize: int) -> None:
    """A tile may: its rows and columns only say which program sums. (Interpreted products are numpy's, whose order
    follows the tile: no bits to compare here.)"""
    assert len({choose(rows, arch, itemsize).step for rows in (1, 128, 129, 512, 1024, 1025, 8192, 131072)}) == 1


def test_what_they_refuse() -> None:
    x, (weight, bias) = normal(4, 32), interleave(normal(48, 32), normal(48))
    with pytest.raises(ValueError, match="x is 31 wide; it must be even"):
        geglu(x[:, :31])
    with pytest.raises(ValueError, match="x has strides"):
        geglu(x[:, ::2])
    with pytest.raises(ValueError, match="x is 32 wide; weight takes 16"):
        geglu_linear(x, weight[:, :16], bias)
    with pytest.raises(ValueError, match="weight is torch.float16; it must be torch.float32"):
        geglu_linear(x, weight.half(), bias)
    with pytest.raises(ValueError, match="weight has 3 rows"):
        interleave(weight[:3], None)
    assert geglu(x[:0]).shape == (0, 16) and geglu_linear(x[:0], weight, bias).shape == (0, 24)


def test_the_floors() -> None:
    assert cost(8192, 1280).moved == 3 * 8192 * 1280 * 2
    fused = linear_cost(8192, 1280, 320)
    assert fused.operations == 2 * 8192 * 2560 * 320 and fused.moved == (8192 * 1600 + 2560 * 321) * 2


def test_compiled() -> None:
    """A variant of each tile; `python -m kernels geglu` compiles all."""
    every = compiled(
        "geglu",
        [
            ("geglu_kernel 1280 fp16", (80, 90, 120)),
            ("geglu_kernel 5120 bf16", (90,)),
            ("1280x320 128x256 fp16", (90,)),
            ("5120x1280 128x128 fp16", (90, 120)),
            ("5120x1280 64x128 bf16", (80, 90)),
        ],
    )
    rows, products = every[:4], every[4:]
    for row in rows:
        assert "geglu_kernel" in row["name"]
        assert not row["faults"], row
        assert row["ld"] == [16] and row["st"] == [16], row
    assert len(rows) == 4 and len(products) == 5
    for row in products:
        assert not row["faults"], row
        assert row["cp_async"] == [16] and row["st"] == [16], row
        assert row["wgmma"] == (row["arch"] == 90), row
