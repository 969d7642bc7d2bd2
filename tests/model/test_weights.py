"""Loading into torch: networks come ready to run, with the numbers of a folder or of a single file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.weights import load_text, load_unet, load_vae_decoder, load_vae_encoder, load_vae_moments
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.original import make_folder, write_original

LOADS = {
    load_text: "text_encoder/model",
    load_unet: "unet/diffusion_pytorch_model",
    load_vae_decoder: "vae/diffusion_pytorch_model",
    load_vae_encoder: "vae/diffusion_pytorch_model",
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_networks_come_ready_to_run(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, dtype=dtype))
    for load, name in LOADS.items():
        stored = load_file(tmp_path / f"{name}.safetensors")
        for wanted in (torch.float32, torch.bfloat16):
            net = load(checkpoint.spec, checkpoint.weights, wanted)
            assert not net.training
            assert {(p.dtype, p.requires_grad, p.device.type) for p in net.parameters()} == {(wanted, False, "cpu")}
            assert all(torch.equal(value, stored[name].to(wanted)) for name, value in net.state_dict().items())


def test_a_network_keeps_nothing_of_the_file(tmp_path: Path) -> None:
    """What trains or folds its weights must not write into the mapping, nor see what others do to the file."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, dtype=torch.float32))
    net, again = (load_unet(checkpoint.spec, checkpoint.weights) for _ in range(2))
    with torch.no_grad():
        net.conv_in.weight.zero_()
    assert again.conv_in.weight.any()
    array = checkpoint.weights.array("unet", "conv_in.weight", tuple(net.conv_in.weight.shape))
    assert array.any()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path) / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor for name, tensor in weights.items() if name != "encoder.conv_in.bias"}, path)
    checkpoint = open_checkpoint(tmp_path)
    for load in (load_vae_decoder, load_vae_encoder):  # also the one that has no use for it
        with pytest.raises(CheckpointError, match=r"1 missing \(encoder.conv_in.bias\)"):
            load(checkpoint.spec, checkpoint.weights)
    load_unet(checkpoint.spec, checkpoint.weights)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_loads_the_bits_of_its_folder(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "folder", kind, levels=2)
    file = write_original(folder, kind, tmp_path / "model.safetensors", levels=2)
    one, two = open_checkpoint(folder), open_checkpoint(file, "epsilon")
    for load in (*LOADS, load_vae_moments):
        a, b = (load(each.spec, each.weights).state_dict() for each in (one, two))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
