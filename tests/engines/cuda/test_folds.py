"""Residuals that products add: the folded network against the one that is left as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu.subjects import networks
from engines.cuda.folds import Onto, ShiftedGroupNorm, ShiftedNorm
from engines.cuda.kernels import plain_kernels, triton_kernels
from engines.cuda.ops import KernelOps, fold_biases
from kernels.group_norm_silu import reference
from model.ops import PLAIN
from model.random import init_random
from model.transformer import SpatialTransformer
from model.unet import Unet
from pipeline.spec import UnetSpec
from tests.support.unets import SD15, SD21, SDXL, Passes, away, inputs, unet_of, use

LAST = torch.channels_last


@pytest.mark.parametrize(
    ("spec", "without"),
    [
        *((spec, ()) for spec in (SD15, SD21, SDXL)),
        *((SD15, without) for without in ("attn1.to_out.0", "ff.net.2", ("to_out.0", "net.2"))),
    ],
    ids=["sd15", "sd21", "sdxl", "no bias at first", "nor at last", "nor at all"],
)
def test_it_computes_the_same_through_any_operations(spec: UnetSpec, without: Any) -> None:
    """In float64, where a bias that came twice, late or never cannot pass for rounding: the result is off by half."""
    wanted = use(unet_of(spec, torch.float64, without=without), PLAIN)
    folded = unet_of(spec, torch.float64, without=without)
    fold_biases(folded)
    fold_biases(folded)  # there is nothing left to fold
    given = inputs(spec, torch.float64)
    with torch.inference_mode():
        right = wanted(*given)
        for ops in (KernelOps(plain_kernels()), PLAIN):
            # Resnets' biases are added in float32: 2e-9 seen.
            assert away(use(folded, ops)(*given), right) < 1e-7


def test_what_is_folded_and_what_is_left() -> None:
    net = unet_of(SDXL, torch.float32)
    fold_biases(net)
    layers, transformers = 2 * 3 + 10 * 4, 7
    kinds = Counter(type(module) for module in net.modules())
    assert kinds[Onto] == 3 * layers + transformers
    assert kinds[SpatialTransformer] == kinds[ShiftedGroupNorm] == transformers
    assert kinds[ShiftedNorm] == 3 * layers - transformers, "the first of each reads a whole stream"
    apart = unet_of(SDXL, torch.float32)
    fold_biases(apart, residuals=False)
    assert not any(isinstance(module, Onto | ShiftedNorm | ShiftedGroupNorm) for module in apart.modules())


@pytest.mark.parametrize(
    ("spec", "biases"), [(SD15, 0.1), (SD15, 1.0), (SDXL, 1.0)], ids=["small biases", "sd15", "sdxl"]
)
def test_float16_is_no_worse(spec: UnetSpec, biases: float) -> None:
    """Against the same weights in float64. A residual is rounded once instead of twice, a shift once at load."""
    given = inputs(spec, torch.float16)
    with torch.inference_mode():
        errors = {True: 0.0, False: 0.0}
        for seed in range(2):
            right = unet_of(spec, torch.float16, biases=biases, seed=seed).double()(*(x.double() for x in given))
            for residuals in errors:
                net = unet_of(spec, torch.float16, biases=biases, seed=seed)
                fold_biases(net, residuals=residuals)
                errors[residuals] += away(net(*given), right) / 2
    folded, apart = errors.values()
    # Of one network 0.79 to 1.09 of it, of the mean of twelve 0.97 and 0.96, of SDXL's six 0.86; the layers' biases
    # ahead instead of behind up to 1.24.
    assert folded < 1.2 * apart < 1.2e-2, f"{folded:.2e}, apart {apart:.2e}"


def test_a_step_of_stable_diffusion_adds_22_residuals_instead_of_86() -> None:
    """On the meta device, at its own size; normalisations, whose kernels add their shifts themselves, are left out."""

    def normed(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        return torch.empty_like(x)

    counted = []
    for residuals in (False, True):
        kernels = replace(plain_kernels(), group_norm_silu=normed, layer_norm=normed)
        with torch.device("meta"):
            net = Unet(networks.SD15, KernelOps(kernels)).half().requires_grad_(False)
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            for conv in net.modules():
                if isinstance(conv, nn.Conv2d):  # torch's on the meta device is laid out in planes
                    conv.register_forward_hook(lambda _, given, made: made.contiguous(memory_format=LAST))
            fold_biases(net, residuals=residuals)
            latents = torch.empty(2, 4, 64, 64).half().contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                shifts, kv = net.time_shifts(torch.empty(2)), net.context_kv(torch.empty(2, 77, 768).half())
                with Passes() as passes:
                    net.denoise(latents, shifts, kv)
        counted.append(passes.counts)
    before, after = counted
    assert before["add"] == after["add"] == 0
    assert before["add_"] == 22 + 16 + 3 * 16 and after["add_"] == 22
    assert (before["addmm_"], after["addmm_"]) == (0, 48 + 16)
    for copying in ("copy_", "clone", "_to_copy", "contiguous"):
        assert before[copying] == after[copying], copying


@pytest.mark.parametrize("spec", [SD15, SD21], ids=["convolutions", "linear"])
@pytest.mark.parametrize("rows", [1, 2])
def test_what_a_transformer_adds_takes_the_place_of_the_picture_that_it_was_given(spec: UnetSpec, rows: int) -> None:
    """No copy of the picture on the way, and the resnet's own memory goes on."""
    net = unet_of(spec, torch.float16)
    fold_biases(net)
    before, after = [], []
    for resnet, transformer in net.attended():
        resnet.register_forward_hook(lambda _, given, picture: before.append(picture.data_ptr()))
        transformer.register_forward_hook(lambda _, given, picture: after.append(picture.data_ptr()))
    x, timestep, context = inputs(spec, torch.float16)
    with torch.inference_mode():
        net(x[:rows], timestep[:rows], context[:rows])
    assert len(before) == 16 and before == after


@pytest.mark.parametrize("rows", [1, 3])
def test_one_shift_serves_every_picture(rows: int) -> None:
    """In Triton's interpreter, whose launcher is handed a row that stands for all."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 32, 3, 5, generator=generator).contiguous(memory_format=LAST)
    shift = 3 * torch.randn(32, generator=generator)
    norm = ShiftedGroupNorm(init_random(nn.GroupNorm(8, 32, eps=1e-6), 1), shift)
    wanted = reference(x, norm.weight, norm.bias, 8, 1e-6, shift[None], silu=False)
    for ops in (KernelOps(triton_kernels()), KernelOps(plain_kernels()), PLAIN):
        assert away(ops.group_norm(x, norm), wanted) < 1e-6


@pytest.mark.parametrize("rows", [1, 2])
def test_the_sum_takes_the_residuals_place_and_is_rounded_once(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    onto = Onto(nn.Linear(48, 32).half().requires_grad_(False))
    x = torch.randn(rows, 15, 48, generator=generator).half()
    picture = torch.randn(rows, 32, 3, 5, generator=generator).half().contiguous(memory_format=torch.channels_last)
    residual = picture.flatten(2).transpose(1, 2)  # tokens, as a transformer sees them
    wanted = residual.double() + x.double() @ onto.weight.double().t()
    summed = onto.onto(x, residual)
    assert summed is residual and summed.data_ptr() == picture.data_ptr()
    # Half of float16's last bit, and float32's sums, which may carry a number across a boundary.
    assert float(((summed - wanted).abs() / wanted.abs().clamp(min=0.1)).max()) < 2.0**-11 * 1.01


def test_a_residual_that_cannot_be_added_to_in_place_is_refused() -> None:
    """Rather than the sum being lost in a copy."""
    onto = Onto(nn.Linear(4, 8).requires_grad_(False))
    planes = torch.zeros(2, 8, 15).transpose(1, 2)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        onto.onto(torch.zeros(2, 15, 4), planes)
