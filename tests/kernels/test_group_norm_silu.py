"""Group normalisation in Triton's interpreter against float64: held in registers, and in two kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kernels.group_norm_silu as module
import kernels.group_norm_tiles as group_norm_tiles
from kernels.group_norm_silu import DECODER, LARGE, UNET, cost, group_norm_silu, reference
from kernels.group_norm_tiles import Held, Parts, needs_64_bits, plan_of
from tests.support.ahead import compiled
from tests.support.comparing import HALF, SINGLE, assert_close, normal, poisoned

DTYPES = [torch.float32, torch.float16]
# c, h, w, groups: held, of one block and of several, and of ragged positions; in parts, a ragged last one, groups
# with which no block of 64 channels begins (10 and 30 wide), a last block of few channels.
HELD = [(24, 1, 1, 4), (24, 5, 7, 4), (64, 8, 8, 32), (320, 6, 7, 32)]
PARTS = [(120, 11, 25, 4), (80, 20, 26, 8), (40, 23, 25, 2)]


def picture(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(n, c, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)


def test_the_shapes_take_both_paths() -> None:
    assert all(isinstance(plan_of(h * w, c, groups), Held) for c, h, w, groups in HELD)
    assert not any(isinstance(plan_of(h * w, c, groups), Held) for c, h, w, groups in PARTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "h", "w", "groups"), HELD + PARTS)
def test_against_float64(c: int, h: int, w: int, groups: int, dtype: torch.dtype) -> None:
    x, weight, bias = picture(2, c, h, w, dtype), normal(c, dtype=dtype), normal(c, dtype=dtype)
    out = poisoned(x)
    assert group_norm_silu(x, weight, bias, groups, 1e-5, out=out) is out
    tolerance = SINGLE if dtype == torch.float32 else HALF
    assert_close(out, reference(x, weight, bias, groups, 1e-5, None, True), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "h", "w", "groups"), [HELD[-1], PARTS[0]])
@pytest.mark.parametrize("silu", [True, False])
def test_the_shift_enters_the_statistics(c: int, h: int, w: int, groups: int, silu: bool, dtype: torch.dtype) -> None:
    x, weight, bias = picture(2, c, h, w, dtype), normal(c, dtype=dtype), normal(c, dtype=dtype)
    shift = 3 * normal(2, 3 * c + 1, dtype=dtype)[:, c + 1 : 2 * c + 1]  # one of many in a row, at an odd address
    out = group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift, silu=silu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    tolerance = SINGLE if dtype == torch.float32 else HALF
    assert_close(out, reference(x, weight, bias, groups, 1e-5, shift, silu), tolerance)


@pytest.mark.parametrize(("c", "h", "w", "groups"), [HELD[-1], PARTS[0]])
def test_one_row_of_shifts_stands_for_all(c: int, h: int, w: int, groups: int) -> None:
    """A stride of zero: the bits of as many equal rows."""
    x, weight, bias, shift = picture(2, c, h, w), normal(c), normal(c), 3 * normal(c)
    wanted = group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift.repeat(2, 1), silu=False)
    got = group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift.expand(2, -1), silu=False, out=poisoned(x))
    assert torch.equal(got, wanted)


def test_many_parts_and_many_tiles_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pictures of the decoder's size need, at a size that an interpreter can wait for."""
    for name, value in {"_HELD": 0, "_TILE": 256, "_PART": 64}.items():
        monkeypatch.setattr(group_norm_tiles, name, value)
    plan = plan_of(9 * 29, 64, 16)
    assert isinstance(plan, Parts) and plan.parts > 64 and plan.apply_constants["TILES"] > 2
    x, weight, bias = picture(1, 64, 9, 29), normal(64), normal(64)
    out = group_norm_silu(x, weight, bias, 16, 1e-5, out=poisoned(x))
    assert_close(out, reference(x, weight, bias, 16, 1e-5, None, True), SINGLE)


@pytest.mark.parametrize(("c", "h", "w", "groups"), [HELD[-1], PARTS[0]])
def test_a_small_variance_about_a_large_mean(c: int, h: int, w: int, groups: int) -> None:
    """E[x^2] - E[x]^2 would have no digit left in float32: 1e8 against 1. Each channel lies elsewhere, too."""
    x = picture(1, c, h, w) + 1e4
    weight, bias = torch.ones(c), torch.zeros(c)
    # x has steps of 2^-10 here; a mean is off by some of them, against a deviation of 1.
    wanted = reference(x, weight, bias, groups, 1e-5, None, False)
    assert_close(group_norm_silu(x, weight, bias, groups, 1e-5, silu=False), wanted, 2e-3)


@pytest.mark.parametrize(("c", "h", "w", "groups"), [HELD[-1], PARTS[0]])
def test_a_constant_is_the_bias(c: int, h: int, w: int, groups: int) -> None:
    x, bias = torch.full((1, c, h, w), 3.0).contiguous(memory_format=torch.channels_last), normal(c)
    out = group_norm_silu(x, normal(c), bias, groups, 1e-5, silu=False)
    assert torch.equal(out, bias[None, :, None, None].expand_as(out))


@pytest.mark.parametrize(("c", "h", "w", "groups"), [HELD[-1], PARTS[0]])
def test_a_picture_does_not_depend_on_its_company(c: int, h: int, w: int, groups: int) -> None:
    x, weight, bias, shift = picture(3, c, h, w), normal(c), normal(c), normal(3, c)
    together = group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift)
    x[::2] = torch.nan
    assert torch.equal(group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift)[1], together[1])
    alone = x[1:2].contiguous(memory_format=torch.channels_last)
    assert torch.equal(group_norm_silu(alone, weight, bias, groups, 1e-5, shift=shift[1:2])[0], together[1])
    assert torch.equal(group_norm_silu(alone, weight, bias, groups, 1e-5, shift=shift[1:2], out=alone)[0], together[1])


@pytest.mark.parametrize(("positions", "width"), UNET + DECODER)
def test_the_programs_of_stable_diffusion(positions: int, width: int) -> None:
    """Parts cover the picture and are not more than the tile that merges them; two pictures occupy a GPU."""
    plan = plan_of(positions, width, 32)
    assert plan.channels % (width // 32) == 0 and width % plan.channels == 0
    assert plan.channels * 2 % 16 == 0, "16-byte loads of half precision"
    if isinstance(plan, Held):
        assert plan.constants["POSITIONS"] * plan.constants["BLOCK"] <= 64 * 32 * plan.warps, "64 numbers a thread"
        assert positions <= 256
    else:
        assert (plan.parts - 1) * plan.span < positions <= plan.parts * plan.span
        assert plan.parts <= plan.apply_constants["PARTS"] <= 128
        assert 2 * plan.parts * (width // plan.channels) >= 64
        assert width % 64 == 0


def test_what_it_refuses() -> None:
    x, weight = picture(1, 24, 4, 4), normal(24)
    with pytest.raises(ValueError, match="x has strides .* must be channels_last"):
        group_norm_silu(x.contiguous(), weight, weight, 4, 1e-5)
    with pytest.raises(ValueError, match="x has 24 channels; they must divide into 5 groups"):
        group_norm_silu(x, weight, weight, 5, 1e-5)
    with pytest.raises(ValueError, match="shift has strides"):
        group_norm_silu(x, weight, weight, 4, 1e-5, shift=normal(1, 48)[:, ::2])
    with pytest.raises(ValueError, match="out is torch.float16; it must be torch.float32"):
        group_norm_silu(x, weight, weight, 4, 1e-5, out=x.half())
    assert group_norm_silu(x[:0], weight, weight, 4, 1e-5).shape == (0, 24, 4, 4)


def test_the_floor() -> None:
    assert cost(2, 256, 1280).moved == (2 * 256 * 2 + 3) * 1280 * 2, "held: one read, one write"
    assert cost(2, 4096, 320).moved == (2 * 4096 * 3 + 3) * 320 * 2


def test_compiled() -> None:
    """Pictures in 16-byte loads and stores; what is narrower are a channel's weight and shift, a group's sums."""
    some, hopper = (80, 90, 120), (90,)
    rows = compiled(
        "group_norm_silu",
        [
            ("held_kernel 2560 @ 256 silu fp16", some),
            ("held_kernel 1280 @ 256 shift silu fp16", hopper),
            ("parts_kernel 320 @ 4096 shift fp16", some),
            ("parts_kernel 960 @ 4096 bf16", hopper),
            ("apply_kernel 320 @ 4096 shift silu fp16", hopper),
            ("apply_kernel 320 @ 4096 shift fp16", hopper),
            ("parts_kernel 128 @ 262144 fp16", hopper),
            ("apply_kernel 128 @ 262144 silu fp16", hopper),
        ],
    )
    assert len(rows) == 12
    for row in rows:
        assert not row["faults"], row
        assert 16 in row["ld"] and 8 not in row["ld"], row
        assert row["st"] == ([4] if "parts" in row["name"] else [16]), row


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("c", "h", "w", "groups"), PARTS[2:])
def test_64_bits_compute_what_32_do(
    c: int, h: int, w: int, groups: int, shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a picture of 2^31 elements takes, at a size that fits here: the same order of sums, so the same bits."""
    x, weight, bias, shift = picture(2, c, h, w), normal(c), normal(c), normal(2, c) if shifted else None
    wanted = group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift)
    asked = []
    monkeypatch.setattr(module, "needs_64_bits", lambda *size: asked.append(size) or True)
    assert torch.equal(group_norm_silu(x, weight, bias, groups, 1e-5, shift=shift, out=poisoned(x)), wanted)
    assert asked == [(h * w, c, plan_of(h * w, c, groups))]


def test_which_pictures_take_64_bits() -> None:
    """From where an address, masked ones of the last tiles too, passes 2^31; not the decoder's of 512x512."""
    for positions, width in LARGE:
        plan = plan_of(positions, width, 32)
        assert isinstance(plan, Parts) and needs_64_bits(positions, width, plan)
        assert plan.parts <= 128 and (plan.parts - 1) * plan.span < positions <= plan.parts * plan.span
    for positions, width in DECODER:
        plan = plan_of(positions, width, 32)
        assert isinstance(plan, Parts) and not needs_64_bits(positions, width, plan)
    plan = plan_of(4095 * 4096, 128, 32)
    assert isinstance(plan, Parts) and 4095 * 4096 * 128 < 2**31 and needs_64_bits(4095 * 4096, 128, plan)
    # Nothing is computed on meta tensors: a launcher that refused them would say so.
    far = torch.empty((1, 128, 4096, 4096), dtype=torch.float16, device="meta", memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="weight has shape"):
        group_norm_silu(far, far[0, 0, 0], far[0, :, 0, 0], 32, 1e-5)


def test_large_pictures_compiled() -> None:
    rows = compiled(
        "group_norm_silu",
        [("parts_kernel 128 @ 16777216 fp16", (90,)), ("apply_kernel 256 @ 16777216 silu fp16", (90,))],
    )
    assert len(rows) == 2
    for row in rows:
        assert not row["faults"], row
        assert 16 in row["ld"] and 8 not in row["ld"], row
        assert row["st"] == ([4] if "parts" in row["name"] else [16]), row
