"""Loading: what does not fit is refused in words, and what old checkpoints wrote is understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.weights import load_text, load_unet, load_vae_decoder, load_vae_encoder
from pipeline.checkpoint.parts import weight_files
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from tests.checkpoints import make_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


def refusal(load: object, checkpoint: Path) -> str:
    assert callable(load)
    with pytest.raises(CheckpointError) as caught:
        load(read_spec(checkpoint), checkpoint)
    message = str(caught.value)
    assert len(message) < 1000 and "\n" not in message
    return message


def test_networks_come_ready_to_run(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    for load in (load_text, load_unet, load_vae_decoder, load_vae_encoder):
        net = load(spec, checkpoint, torch.bfloat16)
        assert not net.training
        assert {(p.dtype, p.requires_grad, p.device.type) for p in net.parameters()} == {(torch.bfloat16, False, "cpu")}


@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_a_missing_or_unknown_tensor_is_named(checkpoint: Path, path: str) -> None:
    loads = {UNET: load_unet, VAE: load_vae_decoder, TEXT: load_text}
    weights = load_file(checkpoint / path)
    first = next(name for name in sorted(weights) if name.startswith(("conv_in", "decoder.conv_in", "text_model.")))
    tensor = weights.pop(first)
    save_file({**weights, "lora.up": tensor}, checkpoint / path)
    message = refusal(loads[path], checkpoint)
    assert str(checkpoint / path) in message
    assert f"1 missing ({first})" in message and "1 unknown (" in message and "lora.up" in message


def test_many_faults_are_counted_and_few_listed(checkpoint: Path) -> None:
    save_file({"something": torch.ones(1)}, checkpoint / UNET)
    message = refusal(load_unet, checkpoint)
    assert " missing (" in message and ", ...)" in message and "1 unknown (something)" in message


def test_a_wrong_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :2].contiguous()
    save_file(weights, checkpoint / UNET)
    message = refusal(load_unet, checkpoint)
    assert "conv_in.weight has shape [32, 2, 3, 3], its config says [32, 3, 3, 3]" in message


def test_a_config_of_another_model_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_linear_projection": True}))
    message = refusal(load_unet, checkpoint)
    assert "attentions.0.proj_in.weight has shape [32, 32, 1, 1], its config says [32, 32]" in message


def test_integers_are_no_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    save_file(weights | {"conv_in.bias": torch.ones(32, dtype=torch.int8)}, checkpoint / UNET)
    assert "conv_in.bias has dtype I8" in refusal(load_unet, checkpoint)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not safetensors", b"\xff" * 64])
def test_another_format_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / UNET).write_bytes(content)
    assert f"{checkpoint / UNET} is not a whole safetensors file" in refusal(load_unet, checkpoint)


@pytest.mark.parametrize("kept", [7, 100, -1])
def test_a_truncated_file_is_refused(checkpoint: Path, kept: int) -> None:
    content = (checkpoint / VAE).read_bytes()
    (checkpoint / VAE).write_bytes(content[:kept])
    assert "is not a whole safetensors file" in refusal(load_vae_encoder, checkpoint)


def test_no_weights_and_pickles_are_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    assert f"{checkpoint / UNET} is missing" in refusal(load_unet, checkpoint)
    (checkpoint / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    message = refusal(load_unet, checkpoint)
    assert "pickle (diffusion_pytorch_model.bin)" in message and "safetensors" in message


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_a_half_precision_variant_is_found(checkpoint: Path, path: str, variant: str) -> None:
    loads = {UNET: load_unet, VAE: load_vae_decoder, TEXT: load_text}
    other = (checkpoint / path).with_suffix(f".{variant}.safetensors")
    (checkpoint / path).rename(other)
    loads[path](read_spec(checkpoint), checkpoint)
    (checkpoint / path).write_bytes(other.read_bytes())  # full precision comes first
    assert weight_files(checkpoint, path.split("/")[0]) == [checkpoint / path]


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_the_index_of_a_variant_is_found(checkpoint: Path, variant: str) -> None:
    index = shard(checkpoint)
    index.rename(index.with_name(f"diffusion_pytorch_model.safetensors.index.{variant}.json"))
    load_unet(read_spec(checkpoint), checkpoint)


def shard(checkpoint: Path) -> Path:
    weights = load_file(checkpoint / UNET)
    (checkpoint / UNET).unlink()
    halves = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
    for name, keys in halves.items():
        save_file({key: weights[key] for key in keys}, checkpoint / "unet" / name)
    index = checkpoint / f"{UNET}.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in halves.items() for key in keys}}))
    return index


def test_shards(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    whole = load_unet(spec, checkpoint).state_dict()
    shard(checkpoint)
    parts = load_unet(spec, checkpoint).state_dict()
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [path.name for path in weight_files(checkpoint, "unet")] == ["a.safetensors", "b.safetensors"]


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / "unet/b.safetensors").unlink()
    assert "b.safetensors is missing" in refusal(load_unet, checkpoint)


@pytest.mark.parametrize(
    "name", ["../vae/diffusion_pytorch_model.safetensors", "/a.safetensors", "x\\a.safetensors", "a.bin", "..", 7, None]
)
def test_an_index_names_only_files_beside_it(checkpoint: Path, name: object) -> None:
    index = shard(checkpoint)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert str(index) in refusal(load_unet, checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[" * 100_000])
def test_a_malformed_index_is_refused(checkpoint: Path, content: str) -> None:
    shard(checkpoint).write_text(content)
    assert "index.json" in refusal(load_unet, checkpoint)


@pytest.mark.parametrize("convolutions", [True, False])
def test_an_old_vae(checkpoint: Path, convolutions: bool) -> None:
    spec, weights = read_spec(checkpoint), load_file(checkpoint / VAE)
    loads = (load_vae_decoder, load_vae_encoder)
    wanted = [load(spec, checkpoint).state_dict() for load in loads]
    old = {}
    for name, tensor in weights.items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f"attentions.0.{new}." in name:
                name = name.replace(new, before)
                tensor = tensor[..., None, None] if convolutions and tensor.ndim == 2 else tensor
        old[name] = tensor
    assert old.keys() != weights.keys()
    save_file(old, checkpoint / VAE)
    for load, before in zip(loads, wanted, strict=True):
        after = load(spec, checkpoint).state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_old_and_a_new_text_encoder(checkpoint: Path) -> None:
    spec, weights = read_spec(checkpoint), load_file(checkpoint / TEXT)
    wanted = load_text(spec, checkpoint).state_dict()
    positions = torch.arange(spec.text.tokens)[None]
    old = weights | {"text_model.embeddings.position_ids": positions}
    new = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    heads = {"text_projection.weight": torch.ones(8, 48), "logit_scale": torch.tensor(4.6)}
    pictures = {"visual_projection.weight": torch.ones(8, 8), "vision_model.embeddings.class_embedding": torch.ones(8)}
    for changed in (old, new, new | heads, weights | heads | pictures):
        save_file(changed, checkpoint / TEXT)
        loaded = load_text(spec, checkpoint).state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
