"""Muon moves matrices along their whole gradient; AdamW moves what is no matrix."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.support.training import tiny
from training.networks import new_text, new_unet
from training.optimizer import Muon, optimizers_of, orthogonal


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 20, 90), (2, 90, 20)])
def test_singular_values_become_about_equal_and_vectors_stay(shape: tuple[int, int, int]) -> None:
    # Values from 3 down to 0.3, as of a gradient that is mostly of few directions; the least are still lifted to 0.6.
    random = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=random), full_matrices=False)
    values = torch.linspace(3, 0.3, left.shape[-1])
    made = orthogonal(left * values @ right)
    assert made.dtype == torch.float32 and made.shape == shape
    least, most = torch.linalg.svdvals(made).aminmax()
    assert least > 0.6 and most < 1.25
    seen = left.mT @ made @ right.mT  # diagonal where the singular vectors are the same
    beside = seen - torch.diag_embed(seen.diagonal(dim1=1, dim2=2))
    assert beside.abs().max() < 0.02


@pytest.mark.parametrize("kind", [nn.Linear(24, 32), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 1)])
def test_a_matrix_moves_by_a_fifth_of_the_rate_whatever_its_gradient_is(kind: nn.Module) -> None:
    """So that one rate serves both: AdamW's steps are about as long (Liu et al. 2025, 2.2)."""
    weight = kind.weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 1e-4
    Muon([weight], rate=0.01, decay=0.0).step()
    moved = float((weight.detach() - before).square().mean().sqrt())
    assert 0.8 * 0.2 * 0.01 < moved < 1.1 * 0.2 * 0.01
    assert float((weight.detach() - before).mul(weight.grad).sum()) < 0


def test_tables_edges_norms_and_biases_are_adamw_s() -> None:
    recipe = dataclasses.replace(tiny().phases.denoiser, optimizer="muon")
    net = nn.ModuleDict({"text": new_text(tiny()), "unet": new_unet(tiny())})
    adamw, muon = optimizers_of(net, recipe)
    names = {parameter: name for name, parameter in net.named_parameters()}
    matrices = {names[p] for group in muon.param_groups for p in group["params"]}
    rest = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert matrices.isdisjoint(rest) and matrices | rest == set(names.values())
    assert {"unet.conv_in.weight", "unet.conv_out.weight"} <= rest
    assert all("norm" not in name and "embeddings" not in name and name.endswith("weight") for name in matrices)
    assert sum("attn" in name or "resnets" in name for name in matrices) > 20


def test_adamw_has_everything_unless_a_recipe_says_muon() -> None:
    net = new_unet(tiny())
    recipe = dataclasses.replace(tiny().phases.denoiser, optimizer="adamw")
    (adamw,) = optimizers_of(net, recipe)
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(net.parameters()))


def test_a_weight_that_a_step_does_not_use_stays() -> None:
    used, unused = nn.Linear(16, 16), nn.Linear(16, 16)
    before = unused.weight.detach().clone()
    used(torch.ones(1, 16)).sum().backward()
    Muon([used.weight, unused.weight], rate=0.1, decay=0.5).step()
    assert torch.equal(unused.weight, before)
