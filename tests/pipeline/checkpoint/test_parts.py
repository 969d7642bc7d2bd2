"""A folder in diffusers' layout: what does not fit is refused in words, old names and shards are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.weights import check_weights, load_text, load_vae_decoder, load_vae_encoder
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.checkpoint.parts import weight_files
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.layouts import TEXT, UNET, VAE, shard


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


def whole(checkpoint: Path) -> Checkpoint:
    """Open a checkpoint and compare its tensors with its configs, as every backend does before it loads one."""
    opened = open_checkpoint(checkpoint)
    check_weights(opened.spec, opened.weights)
    return opened


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        whole(checkpoint)
    message = str(caught.value)
    assert len(message) < 1000 and "\n" not in message
    return message


@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_a_missing_or_unknown_tensor_is_named(checkpoint: Path, path: str) -> None:
    weights = load_file(checkpoint / path)
    first = next(name for name in sorted(weights) if name.startswith(("conv_in", "decoder.conv_in", "text_model.")))
    tensor = weights.pop(first)
    save_file({**weights, "lora.up": tensor}, checkpoint / path)
    message = refusal(checkpoint)
    assert str(checkpoint / path) in message
    assert f"1 missing ({first})" in message and "1 unknown (" in message and "lora.up" in message


def test_many_faults_are_counted_and_few_listed(checkpoint: Path) -> None:
    save_file({"something": torch.ones(1)}, checkpoint / UNET)
    message = refusal(checkpoint)
    assert " missing (" in message and ", ...)" in message and "1 unknown (something)" in message


def test_a_wrong_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :2].contiguous()
    save_file(weights, checkpoint / UNET)
    message = refusal(checkpoint)
    assert "conv_in.weight has shape [32, 2, 3, 3], its config says [32, 3, 3, 3]" in message


def test_a_config_of_another_model_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_linear_projection": True}))
    message = refusal(checkpoint)
    assert "attentions.0.proj_in.weight has shape [32, 32, 1, 1], its config says [32, 32]" in message


def test_integers_are_no_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    save_file(weights | {"conv_in.bias": torch.ones(32, dtype=torch.int8)}, checkpoint / UNET)
    assert "conv_in.bias is stored as I8; latentd takes F64, F32, F16, BF16" in refusal(checkpoint)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not safetensors", b"\xff" * 64])
def test_another_format_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / UNET).write_bytes(content)
    assert f"{checkpoint / UNET} is not a whole safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize("kept", [7, 100, -1])
def test_a_truncated_file_is_refused(checkpoint: Path, kept: int) -> None:
    content = (checkpoint / VAE).read_bytes()
    (checkpoint / VAE).write_bytes(content[:kept])
    assert "is not a whole safetensors file" in refusal(checkpoint)


def test_no_weights_and_pickles_are_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    assert f"{checkpoint / UNET} is missing" in refusal(checkpoint)
    (checkpoint / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    message = refusal(checkpoint)
    assert "pickle (diffusion_pytorch_model.bin)" in message and "safetensors" in message


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_a_half_precision_variant_is_found(checkpoint: Path, path: str, variant: str) -> None:
    other = (checkpoint / path).with_suffix(f".{variant}.safetensors")
    (checkpoint / path).rename(other)
    whole(checkpoint)
    (checkpoint / path).write_bytes(other.read_bytes())  # full precision comes first
    assert weight_files(checkpoint, path.split("/")[0]) == [checkpoint / path]


@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_any_other_variant_is_found_where_it_is_alone(checkpoint: Path, path: str) -> None:
    other = (checkpoint / path).with_suffix(".non_ema.safetensors")
    (checkpoint / path).rename(other)
    whole(checkpoint)
    (checkpoint / path).with_suffix(".ema.safetensors").symlink_to(other)
    assert "in several variants, ema, non_ema; leave one of them there" in refusal(checkpoint)
    half = (checkpoint / path).with_suffix(".fp16.safetensors")
    half.symlink_to(other)  # what is known by its name comes first
    assert weight_files(checkpoint, path.split("/")[0]) == [half]


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_index_of_a_variant_is_found(checkpoint: Path, variant: str) -> None:
    shard(checkpoint, "unet", f".{variant}")
    whole(checkpoint)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_shards(checkpoint: Path, part: str) -> None:
    one = whole(checkpoint)
    shard(checkpoint, part)
    two = whole(checkpoint)
    assert [path.name for path in weight_files(checkpoint, part)] == ["a.safetensors", "b.safetensors"]
    assert {tensor.path.name for tensor in two.weights.tensors(part).values()} == {"a.safetensors", "b.safetensors"}
    assert two.weights.digest() == one.weights.digest()
    for name, tensor in one.weights.tensors(part).items():
        arrays = [each.weights.array(part, name, tensor.shape) for each in (one, two)]
        assert (arrays[0] == arrays[1]).all(), name


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    shard(checkpoint, "unet")
    (checkpoint / "unet/b.safetensors").unlink()
    assert "b.safetensors is missing" in refusal(checkpoint)


@pytest.mark.parametrize(
    "name", ["../vae/diffusion_pytorch_model.safetensors", "/a.safetensors", "x\\a.safetensors", "a.bin", "..", 7, None]
)
def test_an_index_names_only_files_beside_it(checkpoint: Path, name: object) -> None:
    index = shard(checkpoint, "unet")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert str(index) in refusal(checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[" * 100_000])
def test_a_malformed_index_is_refused(checkpoint: Path, content: str) -> None:
    shard(checkpoint, "unet").write_text(content)
    assert "index.json" in refusal(checkpoint)


@pytest.mark.parametrize("convolutions", [True, False])
def test_an_old_vae(checkpoint: Path, convolutions: bool) -> None:
    opened, weights = open_checkpoint(checkpoint), load_file(checkpoint / VAE)
    loads = (load_vae_decoder, load_vae_encoder)
    wanted = [load(opened.spec, opened.weights).state_dict() for load in loads]
    old = {}
    for name, tensor in weights.items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f"attentions.0.{new}." in name:
                name = name.replace(new, before)
                tensor = tensor[..., None, None] if convolutions and tensor.ndim == 2 else tensor
        old[name] = tensor
    assert old.keys() != weights.keys()
    save_file(old, checkpoint / VAE)
    again = whole(checkpoint)
    for load, before in zip(loads, wanted, strict=True):
        after = load(again.spec, again.weights).state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_old_and_a_new_text_encoder(checkpoint: Path) -> None:
    opened, weights = open_checkpoint(checkpoint), load_file(checkpoint / TEXT)
    wanted = load_text(opened.spec, opened.weights).state_dict()
    positions = torch.arange(opened.spec.text.tokens)[None]
    old = weights | {"text_model.embeddings.position_ids": positions}
    new = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    for changed in (old, new):
        save_file(changed, checkpoint / TEXT)
        again = whole(checkpoint)
        loaded = load_text(again.spec, again.weights).state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
