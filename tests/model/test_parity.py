"""Our networks against diffusers' and transformers', in float32, with random weights that they saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from model.ops import PLAIN, PlainOps
from model.random import init_random
from model.unet import Unet
from model.weights import load_text, load_unet, load_vae_decoder, load_vae_encoder
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.spec import read_spec
from tests.support.checkpoints import make_checkpoint

# Of the norm of the result. Both sides add the same float32 products, but not always in the same order (memory
# format, batched or single matrix products): 3e-6 was the most seen, on the UNet; a wrong constant gives 1e-3 or more,
# a wrong eps only where what is normalised is small: hence the `quiet` networks.
TOLERANCE = 1e-5
QUIET = 0.01

UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd1-one-head-number": ("sd1", {"attention_head_dim": 1, "layers_per_block": 2}),
    "sd1-attends-throughout": (
        "sd1",
        {
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "transformer_layers_per_block": 2,
        },
    ),
    "sd1-one-block": (
        "sd1",
        {"block_out_channels": [16], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    ),
    "sd2": ("sd2", {}),
    "sd2-sin-first": ("sd2", {"freq_shift": 0, "layers_per_block": 1, "transformer_layers_per_block": [2, 1, 3]}),
}
VAES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd1-three-blocks": ("sd1", {"block_out_channels": [8, 16, 24], "layers_per_block": 3}),
    "sd2": ("sd2", {}),
    "sd2-no-mid-attention": ("sd2", {"mid_block_add_attention": False, "use_quant_conv": True}),
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {"quick_gelu": ("sd1", {}), "gelu": ("sd2", {})}


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(tmp_path: Path, name: str) -> None:
    check_unet(tmp_path, *UNETS[name])


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@torch.no_grad()
def test_quiet_unet(tmp_path: Path, kind: str) -> None:
    check_unet(tmp_path, kind, {}, scale=QUIET)


def check_unet(folder: Path, kind: str, changes: dict[str, Any], scale: float = 1.0) -> None:
    checkpoint, theirs = diffusers_unet(folder, kind, changes, scale)
    spec = checkpoint.spec
    unet = load_unet(spec, checkpoint.weights)
    latents = normal(3, spec.unet.in_channels, 16, 8)  # not square
    context = normal(3, 13, spec.unet.context_width)  # an odd length
    timestep = torch.tensor([0.0, 17.0, 799.0])
    wanted = theirs(latents, timestep, context).sample
    assert error(unet(latents, timestep, context), wanted) < TOLERANCE

    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs lack this overload)
    latents = latents.contiguous(memory_format=torch.channels_last)
    assert error(unet(latents, timestep, context), wanted) < TOLERANCE


@torch.no_grad()
def test_unet_takes_fractional_timesteps(tmp_path: Path) -> None:
    checkpoint, theirs = diffusers_unet(tmp_path, "sd1", {})
    unet = load_unet(checkpoint.spec, checkpoint.weights)
    latents, context = normal(1, 3, 8, 8), normal(1, 16, 48)
    for timestep in (torch.tensor([0.25]), torch.tensor([799.75])):  # Euler's are interpolated
        wanted = theirs(latents, timestep, context).sample
        assert error(unet(latents, timestep, context), wanted) < TOLERANCE


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@torch.no_grad()
def test_rows_are_independent(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, kind=kind))
    spec, unet = checkpoint.spec, load_unet(checkpoint.spec, checkpoint.weights)
    latents, context = normal(4, spec.unet.in_channels, 8, 8), normal(4, 7, spec.unet.context_width)
    timestep = torch.tensor([799.0, 0.0, 400.5, 17.0])
    together = unet(latents, timestep, context)
    for row in range(4):
        one = slice(row, row + 1)
        # A matrix product over more rows may sum in another order: TOLERANCE, as above.
        assert error(together[one], unet(latents[one], timestep[one], context[one])) < TOLERANCE
    assert error(unet(latents, timestep.flip(0), context), together) > 0.01, "the timestep does nothing"
    assert error(unet(latents, timestep, context.flip(0)), together) > 0.01, "the context does nothing"


@pytest.mark.parametrize("scale", [1.0, QUIET])
@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_vae(tmp_path: Path, name: str, scale: float) -> None:
    kind, changes = VAES[name]
    make_checkpoint(tmp_path, kind=kind, vae=changes)
    theirs: Any = AutoencoderKL.from_config(config(tmp_path / "vae"))
    scaled(init_random(theirs, 3), scale).eval()
    theirs.save_pretrained(tmp_path / "vae")
    checkpoint = open_checkpoint(tmp_path)
    spec, weights = checkpoint.spec, checkpoint.weights
    scaling, shift = spec.vae.scaling_factor, spec.vae.shift_factor

    latents = normal(2, spec.vae.latent_channels, 6, 10)
    picture = theirs.decode(latents / scaling + shift).sample
    assert picture.shape == (2, 3, 6 * spec.vae.factor, 10 * spec.vae.factor)
    assert error(load_vae_decoder(spec, weights)(latents), picture) < TOLERANCE

    encoder = load_vae_encoder(spec, weights)
    wanted = theirs.encode(picture).latent_dist
    mean, logvar = encoder.distribution(picture)
    assert error(mean, wanted.mean) < TOLERANCE and error(logvar, wanted.logvar) < TOLERANCE
    assert error(encoder(picture), (wanted.mean - shift) * scaling) < TOLERANCE


@pytest.mark.parametrize("scale", [1.0, QUIET])
@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_text(tmp_path: Path, name: str, scale: float) -> None:
    kind, changes = TEXTS[name]
    make_checkpoint(tmp_path, kind=kind, text=changes)
    theirs = CLIPTextModel(CLIPTextConfig.from_pretrained(tmp_path / "text_encoder"))
    scaled(init_random(theirs, 4), scale).eval()
    theirs.save_pretrained(tmp_path / "text_encoder")
    checkpoint = open_checkpoint(tmp_path)
    spec = checkpoint.spec
    ids = torch.randint(spec.text.vocab_size, (3, spec.text.tokens), generator=torch.Generator().manual_seed(1))
    ids[0, 5:] = spec.text.vocab_size - 1  # as a short prompt is padded
    context, _ = load_text(spec, checkpoint.weights)(ids)
    assert context.shape == (3, spec.text.tokens, spec.text.width)
    assert error(context, theirs(ids).last_hidden_state) < TOLERANCE


class _OneProduct(PlainOps):
    """Several projections of one input as one matrix product, as a GPU wants them."""

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        y = x @ torch.cat([linear.weight for linear in linears]).T
        parts = list(y.split([linear.out_features for linear in linears], dim=-1))
        return [part if lin.bias is None else part + lin.bias for part, lin in zip(parts, linears, strict=True)]


@torch.no_grad()
def test_ops_can_be_exchanged_and_work_hoisted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, kind="sd2"))
    plain, fused = (load_unet(checkpoint.spec, checkpoint.weights, ops=ops) for ops in (PLAIN, _OneProduct()))
    latents, context = normal(2, 8, 8, 8), normal(2, 5, 40)
    timestep = torch.tensor([3.0, 500.0])
    wanted = plain(latents, timestep, context)
    assert error(fused(latents, timestep, context), wanted) < TOLERANCE  # another order of summation
    hoisted = plain.context_kv(context)
    shifts = plain.time_shifts(timestep)
    assert torch.equal(plain.denoise(latents, shifts, hoisted), wanted)


@torch.no_grad()
def test_random_networks_are_of_order_one(tmp_path: Path) -> None:
    spec = read_spec(make_checkpoint(tmp_path, kind="sd2"))
    once, again = (init_random(Unet(spec.unet), seed=9) for _ in range(2))
    inputs = (normal(2, 8, 16, 16), torch.tensor([1.0, 700.0]), normal(2, 21, 40))
    assert torch.equal(once(*inputs), again(*inputs))
    assert 0.1 < float(once(*inputs).std()) < 10


def scaled(net: nn.Module, scale: float) -> nn.Module:
    """Scales what a network adds up, in place; its norms undo that, but for their eps."""
    for module in net.modules():
        if not isinstance(module, nn.GroupNorm | nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                parameter.mul_(scale)
    return net


def diffusers_unet(
    folder: Path, kind: str, changes: dict[str, Any], scale: float = 1.0
) -> tuple[Checkpoint, UNet2DConditionModel]:
    """Their UNet, saved by them into a checkpoint in `folder`."""
    make_checkpoint(folder, kind=kind, unet=changes)
    theirs = UNet2DConditionModel.from_config(config(folder / "unet"))
    assert isinstance(theirs, UNet2DConditionModel)
    scaled(init_random(theirs, 2), scale).eval()
    theirs.save_pretrained(folder / "unet")
    return open_checkpoint(folder), theirs
