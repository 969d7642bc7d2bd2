"""The random checkpoint of SD 1.5's shape: its names, without its two gigabytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import random_checkpoint
from benchmarks.untouched import Places
from pipeline.checkpoint.header import read_header
from pipeline.checkpoint.single_file import keys
from pipeline.checkpoint.single_file.kinds import SD1, recognise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configs and the tokenizer alone."""
    random_checkpoint.write_small_files(tmp_path)
    return tmp_path


def test_a_single_file_holds_every_tensor_under_its_original_name(folder: Path) -> None:
    shapes, tables = random_checkpoint._shapes(folder), random_checkpoint._originals(folder)
    assert {part: len(each) for part, each in shapes.items()} == {"text_encoder": 196, "unet": 686, "vae": 248}
    back = {
        part: {b: (a, {y: x for x, y in inside.items()}) for a, (b, inside) in tables[part].items()} for part in shapes
    }
    originals = set()
    for part, each in shapes.items():
        for name in each:
            original = random_checkpoint._original(name, tables[part])
            assert keys.renamed(original, back[part]) == [name]
            originals.add(random_checkpoint._PREFIXES[part] + original)
    assert len(originals) == 196 + 686 + 248
    # As published: CompVis' sd-v1-4.ckpt and v1-5-pruned.
    assert {
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.2.1.conv.bias",
        "model.diffusion_model.middle_block.2.in_layers.2.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
    } <= originals


def test_sdxl_has_both_text_encoders(tmp_path: Path) -> None:
    """As many tensors as diffusers' and transformers' classes have; its folder begins the names of the second one's."""
    random_checkpoint.write_small_files(tmp_path, random_checkpoint.SDXL)
    shapes = random_checkpoint._shapes(tmp_path)
    assert {part: len(each) for part, each in shapes.items()} == {"text_encoder": 196 + 517, "unet": 1680, "vae": 248}
    assert shapes["text_encoder"]["text_encoder_2.text_projection.weight"] == (1280, 1280)
    assert sum(name.startswith("text_encoder_2.") for name in shapes["text_encoder"]) == 517


def test_what_is_written_is_a_safetensors_file(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    path = tmp_path / "x.safetensors"
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", "cond_stage_model.transformer.x")
    random_checkpoint.write_safetensors(path, "float16", [(name, (2, 3), lambda: values) for name in names])
    tensors, _ = read_header(path)
    assert [tensors[name].shape for name in names] == [(2, 3)] * 3
    last = tensors[names[-1]]
    assert path.read_bytes()[last.offset :] == values.tobytes() and last.dtype == "F16"
    assert recognise(path, tensors)[0] is SD1


def test_random_numbers_keep_the_order_of_what_they_multiply(folder: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    matrix = random_checkpoint._random("unet", name, (1280, 1280), "float32")()
    assert (matrix @ np.ones(1280)).std() == pytest.approx(1, rel=0.2)
    assert random_checkpoint._random("vae", "decoder.conv_norm_out.weight", (128,), "float16")().mean() > 0.9


def test_a_file_that_a_server_leaves_is_seen(tmp_path: Path) -> None:
    checkpoint, scratch = tmp_path / "model", tmp_path / "scratch"
    (checkpoint / "unet").mkdir(parents=True), scratch.mkdir()
    (checkpoint / "unet" / "config.json").write_text("{}")
    places = Places(checkpoint, scratch)
    assert places.written() == []
    (Path(places.environment["HOME"]) / "note").touch()
    (checkpoint / "unet" / "config.json").write_text("{ }")
    (checkpoint / "model.onnx").touch()
    assert [Path(path).name for path in places.written()] == ["model.onnx", "config.json", "note"]
