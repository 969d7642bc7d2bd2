"""Pictures to bytes in Triton's interpreter: the same bytes as the host's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.to_uint8 import cost, reference, to_uint8
from pipeline.arrays import to_pixels
from tests.support.ahead import compiled
from tests.support.comparing import normal

LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (1, 33, 21), (2, 40, 40)])
def test_the_hosts_bytes(size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    n, h, w = size
    picture = normal(n, 3, h, w, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    out = torch.full((n, h, w, 3), 99, dtype=torch.uint8)
    got, flags = to_uint8(picture, out=out)
    assert got is out and flags.tolist() == [0] * n
    assert torch.equal(out, reference(picture))
    assert np.array_equal(out.numpy(), np.stack([to_pixels(one.float().numpy()) for one in picture]))


def test_halves_go_to_even() -> None:
    """Every number of float32 around every byte's boundary, and the boundaries that are exactly half."""
    middle = (torch.arange(256, dtype=torch.float32) + 0.5) / 127.5 - 1
    near = torch.stack([torch.nextafter(middle, torch.tensor(s * 9.0)) for s in (-1, 1)] + [middle] * 4)
    near[3:] += torch.tensor([-1, 1, 2])[:, None] * 2.0**-24
    picture = torch.cat([near.flatten(), torch.zeros(3 * 520 - near.numel())]).view(1, 3, 20, 26)
    out, _ = to_uint8(picture)
    assert np.array_equal(out[0].numpy(), to_pixels(picture[0].numpy()))
    exact = torch.zeros(1, 3, 1, 1)  # 127.5
    assert to_uint8(exact)[0].tolist() == [[[[128, 128, 128]]]]


def test_what_is_no_number_sets_its_own_pictures_flag() -> None:
    picture = normal(5, 3, 30, 30).clamp(-1, 1)
    clean = to_uint8(picture)[0]
    picture[1, 2, 29, 29], picture[2, 0, 0, 0], picture[4, 1, 3, 3] = torch.nan, torch.inf, -torch.inf
    out, flags = to_uint8(picture)
    assert flags.tolist() == [0, 1, 1, 0, 1]
    assert (out[1, 29, 29, 2], out[2, 0, 0, 0], out[4, 3, 3, 1]) == (0, 255, 0)
    assert (out != clean).sum() <= 3


def test_the_largest_half_is_finite() -> None:
    picture = torch.full((1, 3, 2, 2), 65504.0, dtype=torch.float16)
    out, flags = to_uint8(picture)
    assert (out == 255).all() and flags.tolist() == [0]


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"picture has shape \(2, 4, 8, 8\); it must be \[n, 3, H, W\]"):
        to_uint8(normal(2, 4, 8, 8))
    with pytest.raises(ValueError, match="picture has strides"):
        to_uint8(normal(1, 3, 8, 16)[..., ::2])
    with pytest.raises(ValueError, match="out has shape"):
        to_uint8(normal(1, 3, 8, 8), out=torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_the_floor() -> None:
    assert cost(1, 512, 512).moved == 3 * 512 * 512 * 3


def test_compiled() -> None:
    rows = compiled("to_uint8", [("channels-last fp16", (80, 90, 120)), ("bf16", (90,)), ("planes fp32", (90,))])
    assert len(rows) == 6
    for row in rows:
        assert not row["faults"], row
        assert row["st"] == [16], row
        assert "planes" in row["name"] or row["ld"] == [16], row
