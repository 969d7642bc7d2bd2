"""Rows that share their latents, computed once until the first cross-attention: against all rows, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.subjects import networks
from benchmarks.gpu.subjects.operations import operations, step_floor
from model.ops import spread
from model.random import init_random
from model.unet import Unet
from pipeline.spec import UnetSpec
from tests.support.unets import CLOSE, SD15, SD21, twin_inputs

NOWHERE = {"attention_down": (False,) * 4, "attention_up": (False,) * 4}
SPECS = {
    "sd15": SD15,
    "sd21": SD21,
    "several layers": replace(SD21, transformer_layers=(3, 1, 2, 1)),
    # SDXL's: no attention outermost, so that two skips, and the doubling before them, are of fewer rows.
    "not outermost": replace(SD21, attention_down=(False, True, True, False), attention_up=(False, True, True, False)),
    "in the middle alone": replace(SD15, **NOWHERE),
    "nowhere": replace(SD15, **NOWHERE, transformer_layers=(0,) * 4),
}
FEW = {"attention_down": (True, False), "attention_up": (False, True), "transformer_layers": (1, 1)}


@pytest.mark.parametrize(("rows", "copies"), [(1, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_twins_are_all_rows(name: str, rows: int, copies: int) -> None:
    spec = SPECS[name]
    net = init_random(Unet(spec), 3).eval().double()
    latents, timesteps, context = twin_inputs(spec, rows, copies)
    before = latents.clone()
    wanted = net(latents.repeat_interleave(copies, dim=0), timesteps, context)
    shifts, kv = net.time_shifts(timesteps), net.context_kv(context)
    assert bool(kv) == (name != "nowhere")
    got = net.denoise(latents, shifts, kv, copies)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max() / wanted.abs().max()) < CLOSE
    assert torch.equal(latents, before)
    if name != "nowhere":
        assert float((got[0] - got[1]).abs().max() / got.abs().max()) > 1e-3, "twins part"


def test_rows_that_are_spread_are_nobody_elses() -> None:
    x = torch.arange(6.0).view(2, 3)
    wide = spread(x, 2)
    assert wide.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]] and spread(x, 1) is x
    single = spread(x[:1], 2)
    single[0] = 9  # of one row a view would do, had its rows not one place in memory
    assert single[1].tolist() == x[0].tolist() == [0, 1, 2]


def spared(spec: UnetSpec) -> int:
    """Of one picture, by hand: where the first block attends, a multiplication and an addition are two."""
    c, positions = spec.channels[0], spec.sample_size**2
    resnet = 2 * c * 9 * c
    transformer = c * (c + 3 * c + c + c)  # proj_in; q, k, v; what they give; the query of the text
    return 2 * positions * (spec.in_channels * 9 * c + resnet + transformer) + 4 * positions * positions * c


def test_the_arithmetic_spared_is_what_the_hand_counts() -> None:
    """By torch's counter, and by ours, which docs and gpu-check have their numbers from."""
    spec, rows = replace(SD15, channels=(32, 64), layers=(1, 1), heads=(4, 4), **FEW), 6
    with torch.device("meta"), torch.inference_mode():
        net = Unet(spec)
        shifts, kv = net.time_shifts(torch.empty(rows)), net.context_kv(torch.empty(rows, 77, spec.context_width))
        counted = []
        for copies in (1, 2):
            with FlopCounterMode(display=False) as counter:
                net.denoise(torch.empty(rows // copies, 4, 8, 8), shifts, kv, copies)
            counted.append(counter.get_total_flops())
    ours = [sum(op.flops for op in operations(spec, rows, copies=copies)) for copies in (1, 2)]
    assert counted[0] - counted[1] == ours[0] - ours[1] == rows // 2 * spared(spec) > 0


def test_of_stable_diffusion_it_is_2_6_percent() -> None:
    """docs/gpu.md and docs/kernels.md have these."""
    whole, twins = (step_floor(networks.SD15, 2, 790e12, 4.3e12, copies=copies)[0] for copies in (1, 2))
    assert round((whole - twins) / 1e9, 1) == 41.7 and whole - twins == spared(networks.SD15)
    assert round(100 * (whole - twins) / whole, 1) == 2.6
