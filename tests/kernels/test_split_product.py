"""The split product in Triton's interpreter against float64; how it is cut; what a GPU's compilation is like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.columns import INNER
from kernels.split_product import cost, reference, split_product
from kernels.split_product_tiles import MOST, Tile, candidates, choose, price
from tests.kernels.ahead import compiled
from tests.kernels.comparing import HALF, SINGLE, assert_close, normal, poisoned

DTYPES = [torch.float32, torch.float16]
ARCHITECTURES = [80, 86, 89, 90, 120]
# Side, channels in and rows of every 3x3 convolution of SD 1.5's inner levels: all have 1280 channels out.
CONVOLUTIONS = [(rows, side, c) for rows in (1, 2, 8, 32) for side, c in INNER]


def inputs(rows: int, width: int, depth: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    x, weight = normal(rows, depth, dtype=dtype), (normal(width, depth, seed=1) / depth**0.5).to(dtype)
    return x, weight, normal(width, dtype=dtype), normal(rows, width, dtype=dtype, seed=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
# rows, columns, depth, parts asked for: all of one tile, ragged tiles, a last part that is shorter (5 steps in 3
# parts), a depth of no whole steps, and more parts than steps.
@pytest.mark.parametrize(
    ("rows", "width", "depth", "split"),
    [(1, 8, 16, 1), (5, 40, 144, 2), (70, 96, 160, 3), (33, 130, 600, 4), (129, 24, 200, 30)],
)
def test_against_float64(rows: int, width: int, depth: int, split: int, dtype: torch.dtype) -> None:
    x, weight, bias, residual = inputs(rows, width, depth, dtype)
    tile, out = Tile(32, 32, 32, 4, 3, split), poisoned(residual)
    assert split_product(x, weight, bias, residual, out=out, tile=tile) is out
    # Products and sums in float32, of `depth` numbers of about 1/sqrt(depth); then one rounding.
    assert_close(out, reference(x, weight, bias, residual), SINGLE if dtype == torch.float32 else HALF)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_what_may_be_left_out(with_bias: bool, with_residual: bool) -> None:
    x, weight, bias, residual = inputs(6, 16, 96)
    bias, residual = bias if with_bias else None, residual if with_residual else None
    assert_close(split_product(x, weight, bias, residual), reference(x, weight, bias, residual), SINGLE)


def test_leading_dimensions_and_a_result_in_place_of_the_residual() -> None:
    x, weight, bias, residual = inputs(6, 16, 96)
    wanted = reference(x, weight, bias, residual)
    inside = residual.view(2, 3, 16)
    assert split_product(x.view(2, 3, 96), weight, bias, inside, out=inside) is inside
    assert_close(residual, wanted, SINGLE)


def test_parts_are_added_in_their_order() -> None:
    """Parts of 2^24, 1, -2^24 and 1: in order the first one is lost and the second stays; nothing else gives 1."""
    x = torch.zeros(1, 128)
    x[0, [0, 32, 64, 96]] = torch.tensor([2.0**24, 1, -(2.0**24), 1])
    got = split_product(x, torch.ones(8, 128), tile=Tile(16, 16, 32, 4, 3, 4))
    assert got.tolist() == [[1.0] * 8]


def test_a_row_does_not_depend_on_its_company() -> None:
    """Of the same number of rows; and of another, with the same tile."""
    x, weight, bias, residual = inputs(40, 24, 192)
    tile = Tile(16, 16, 32, 4, 3, 3)
    together = split_product(x, weight, bias, residual, tile=tile)
    x[::2] = torch.nan
    assert torch.equal(split_product(x, weight, bias, residual, tile=tile)[1::2], together[1::2])
    # Whole tiles of rows, each at its place: the interpreter's products are numpy's, whose bits follow both.
    alone = split_product(x[16:32].clone(), weight, bias, residual[16:32].clone(), tile=tile)
    assert torch.equal(alone[1::2], together[17:32:2])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("rows", "side", "channels"), CONVOLUTIONS)
def test_the_cut(rows: int, side: int, channels: int, arch: int) -> None:
    """Parts cover the depth in whole steps; at one and two rows most multiprocessors have a program, in one round."""
    m, depth = rows * side * side, 9 * channels
    tile = choose(m, 1280, depth, arch)
    parts, span = tile.cut(depth)
    assert 1 <= parts <= MOST and span % tile.step == 0 and (parts - 1) * span < depth <= parts * span
    programs = tile.programs(m, 1280) * parts
    assert programs >= 120 and (rows > 2 or programs <= 132)
    assert rows == 32 or 4 * parts * m * 1280 < 50e6, "float32 parts stay in the L2 of an H100 or H200"


def test_the_choice_is_the_cheapest_and_the_first_candidate() -> None:
    for rows, side, channels in CONVOLUTIONS:
        m, depth = rows * side * side, 9 * channels
        found = candidates(m, 1280, depth, 90)
        assert found[0] == choose(m, 1280, depth, 90) and len(found) == len(set(found)) >= 3
        assert all(price(found[0], m, 1280, depth) <= price(tile, m, 1280, depth) for tile in found[1:])


def test_every_candidate() -> None:
    x, weight, bias, residual = inputs(70, 136, 320)
    wanted = reference(x, weight, bias, residual)
    for tile in candidates(70, 136, 320, 90):
        assert_close(split_product(x, weight, bias, residual, tile=tile), wanted, SINGLE)


def test_what_it_refuses() -> None:
    x, weight, bias, residual = inputs(4, 16, 32)
    with pytest.raises(ValueError, match="x is 24 deep; weight takes 32"):
        split_product(x[:, :24].contiguous(), weight)
    with pytest.raises(ValueError, match="x is 30 deep; rows must be a multiple of 16 bytes"):
        split_product(x[:, :30].contiguous(), weight[:, :30].contiguous())
    with pytest.raises(ValueError, match="weight is torch.float16; it must be torch.float32"):
        split_product(x, weight.half())
    with pytest.raises(ValueError, match=r"residual has shape \(4, 8\)"):
        split_product(x, weight, bias, residual[:, :8])
    with pytest.raises(ValueError, match="x has strides"):
        split_product(x.T.contiguous().T, weight)
    assert split_product(x[:0], weight).shape == (0, 16)


def test_the_floor() -> None:
    """29.5 MB of weights, 6.9 us at 4.3 TB/s, rule at two rows of 8x8; arithmetic from some 180 rows on."""
    assert cost(128, 1280, 11520).microseconds() == pytest.approx((2 * 1280 * 11521 + 2 * 128 * 12800) / 4.3e6)
    assert cost(2048, 1280, 11520).microseconds() == pytest.approx(2 * 2048 * 1280 * 11520 / 790e6)


def test_compiled() -> None:
    """A variant of each tile; `python -m kernels split_product` compiles all."""
    products = compiled(
        "split_product",
        [
            ("1280x11520 64x128x64 4 warps 4 stages bf16", (90,)),
            ("1280x11520 128x128x64 8 warps 4 stages fp16", (90,)),
            ("1280x23040 128x256x64 8 warps 3 stages bf16", (90,)),
            ("1280x11520 128x128x32 8 warps 4 stages fp16", (80, 120)),
        ],
    )
    assert len(products) == 5
    for row in products:
        assert not row["faults"], row  # spills, shared memory, a serial wgmma
        assert row["cp_async"] == [16] and min(row["st"]) >= 8, row
        assert row["wgmma"] == (row["arch"] == 90), row
    sums = compiled("split_product", [("1280 of 13 bias residual bf16", (80, 90)), ("1280 of 6 fp16", (90,))])
    assert len(sums) == 3
    for row in sums:
        assert not row["faults"] and row["ld"] == row["st"] == [16], row
