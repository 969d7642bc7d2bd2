"""What a single file is asked to tell, and what is refused: one sentence that names the file and what it looks like."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.__main__ import main
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from tests.support.layouts import state
from tests.support.original import Weights, make_folder, write_original

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("files")
    made = {}
    for kind in ("sd1", "sd2"):
        folder = make_folder(here / kind, kind, levels=2)
        made[kind] = write_original(folder, kind, here / f"{kind}.safetensors", levels=2)
    return made


def refusal(file: Path, prediction: str = "auto") -> str:
    before = state(file.parent)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file, prediction)
    message = str(caught.value)
    assert str(file) in message and len(message) < 600 and "\n" not in message
    assert state(file.parent) == before
    return message


def test_sd2_asks_for_its_prediction(files: dict[str, Path]) -> None:
    message = refusal(files["sd2"])
    for words in ("--prediction epsilon (SD 2-base, SD 2.1-base", "--prediction v_prediction (SD 2 and SD 2.1",
                  "PREDICTION=", '{"prediction": "..."} in sd2.latentd.json'):  # fmt: skip
        assert words in message


@pytest.mark.parametrize(
    ("kind", "flag", "beside", "metadata", "wanted", "side"),
    [
        ("sd1", "auto", None, None, "epsilon", 512),
        ("sd1", "v_prediction", None, None, "v_prediction", 512),
        ("sd2", "epsilon", None, None, "epsilon", 512),
        ("sd2", "v_prediction", None, None, "v_prediction", 768),
        ("sd2", "auto", "v_prediction", None, "v_prediction", 768),
        ("sd2", "epsilon", "v_prediction", "v", "epsilon", 512),
        ("sd2", "auto", None, "v", "v_prediction", 768),
        ("sd2", "auto", "epsilon", "v", "epsilon", 512),
    ],
)
def test_who_tells_the_prediction(
    files: dict[str, Path],
    tmp_path: Path,
    kind: str,
    flag: str,
    beside: str | None,
    metadata: str | None,
    wanted: str,
    side: int,
) -> None:
    """The flag before the settings beside the file before the file's own metadata; then SD 1's epsilon."""
    file = tmp_path / "my.model.safetensors"
    save_file(load_file(files[kind]), file, metadata={"modelspec.prediction_type": metadata} if metadata else None)
    if beside:
        (tmp_path / "my.model.latentd.json").write_text(json.dumps({"prediction": beside, "steps": 9}))
    checkpoint = open_checkpoint(file, flag)
    spec = checkpoint.spec
    assert spec.schedule.prediction == wanted
    assert (spec.defaults.width, spec.defaults.steps) == (side, 9 if beside else 25)
    assert checkpoint.source.holds("latentd.json") == bool(beside)


def test_what_a_tensor_tells(files: dict[str, Path], tmp_path: Path) -> None:
    """Some trainers mark v prediction with an empty tensor; LCM's guidance embedding goes into the config."""
    more = {"v_pred": torch.zeros(0), f"{UNET}time_embed.cond_proj.weight": torch.zeros(64, 32)}
    save_file({**load_file(files["sd2"]), **more}, file := tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(file)
    assert checkpoint.spec.schedule.prediction == "v_prediction" and checkpoint.spec.unet.guidance_width == 32
    assert checkpoint.weights.tensors("unet")["time_embedding.cond_proj.weight"].shape == (64, 32)
    assert checkpoint.small_files().keys() >= {"model_index.json", "unet/config.json", "tokenizer/vocab.json"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "JSON object"),
        ("{", "JSON"),
        ('{"prediction": "v"}', 'prediction is "v"; latentd does epsilon, v_prediction'),
        ('{"rescale_betas_zero_snr": 1}', "rescale_betas_zero_snr is 1; it must be true or false"),
        ('{"predicton": "epsilon"}', 'predicton is "epsilon"; did you mean prediction?'),
    ],
)
def test_bad_settings_beside_the_file(files: dict[str, Path], tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "m.safetensors"
    file.hardlink_to(files["sd1"])
    (tmp_path / "m.latentd.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.latentd\.json") as caught:
        open_checkpoint(file)
    assert words in str(caught.value)


def widen(weights: Weights, channels: int) -> Weights:
    first = weights[f"{UNET}input_blocks.0.0.weight"]
    return {**weights, f"{UNET}input_blocks.0.0.weight": torch.zeros(first.shape[0], channels, 3, 3)}


def without(weights: Weights, *prefixes: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


ONE = torch.zeros(2, 2)
LOOKS = {
    "an instruct-pix2pix model": lambda w: widen(w, 8),
    "a depth-to-image model": lambda w: widen(w, 5),
    "an upscaler": lambda w: widen(w, 7),
    "an SDXL checkpoint": lambda w: {**w, "conditioner.embedders.1.model.ln_final.weight": ONE},
    "an SDXL refiner": lambda w: {**w, f"{UNET}label_emb.0.0.weight": ONE},
    "a Stable Diffusion 3 checkpoint": lambda w: {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": ONE},
    "a Flux checkpoint": lambda w: {"double_blocks.0.img_attn.qkv.weight": ONE},
    "a diffusion transformer": lambda w: {"transformer_blocks.0.attn.to_q.weight": ONE},
    "a LoRA": lambda w: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": ONE},
    "a LoRA ": lambda w: {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": ONE},
    "a ControlNet": lambda w: {**w, "control_model.input_blocks.0.0.weight": ONE},
    "a VAE alone": lambda w: {k: t for k, t in w.items() if k.startswith("first_stage_model.")},
    "a VAE alone ": lambda w: {"encoder.down.0.block.0.conv1.weight": ONE, "decoder.mid.block_1.conv1.weight": ONE},
    "one part of a folder": lambda w: {"down_blocks.0.resnets.0.conv1.weight": ONE},
    "a UNet alone": lambda w: {"input_blocks.0.0.weight": ONE},
    "a checkpoint without its VAE": lambda w: without(w, "first_stage_model."),
    "a checkpoint without its text encoder": lambda w: without(w, "cond_stage_model."),
    "a textual-inversion embedding": lambda w: {"emb_params": ONE},
    "nothing that latentd knows (its tensors: a, b)": lambda w: {"b": ONE, "a": ONE},
}  # fmt: skip


def test_an_inpainting_model_is_one_of_ours(files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "inpainting.safetensors"
    save_file({k: t.clone() for k, t in widen(load_file(files["sd1"]), 9).items()}, file)
    spec = open_checkpoint(file).spec
    assert spec.inpaints and (spec.unet.in_channels, spec.unet.out_channels) == (9, 4)


@pytest.mark.parametrize("what", LOOKS)
def test_other_models_are_named(files: dict[str, Path], tmp_path: Path, what: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file({k: t.clone() for k, t in LOOKS[what](load_file(files["sd1"])).items()}, file)
    message = refusal(file)
    assert f"{file} looks like {what.strip()}" in message
    assert message.endswith("latentd reads single files of Stable Diffusion 1.x, 2.x and XL text-to-image models")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (f"{UNET}input_blocks.1.0.out_layers.3.weight", None, "input_blocks.1.0.out_layers.3.weight is missing"),
        (f"{UNET}input_blocks.1.1.transformer_blocks.1.norm1.weight", ONE, "a level whose layers differ"),
        (f"{UNET}output_blocks.6.0.in_layers.0.weight", ONE, "output_blocks.6.0.out_layers.3.weight is missing"),
        (f"{UNET}adapter.weight", ONE, "1 tensors that its kind of model has not: model.diffusion_model.adapter."),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", torch.zeros(50000, 64),
         "knows 50000 tokens, and CLIP's vocabulary has 49408"),
        (f"{UNET}out.2.bias", torch.zeros(4).to(torch.float8_e4m3fn), "out.2.bias is stored as F8_E4M3"),
    ],
)  # fmt: skip
def test_a_file_that_is_nearly_one(
    files: dict[str, Path], tmp_path: Path, name: str, tensor: torch.Tensor | None, words: str
) -> None:
    weights = load_file(files["sd1"])
    weights.pop(name, None)
    if tensor is not None:
        weights[name] = tensor
    file = tmp_path / "m.safetensors"
    save_file(weights, file)
    assert words in refusal(file)


def header(text: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole safetensors file"),
        (b"abc", "not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (header(b"{}", size=1 << 60), f"a header of {1 << 60} bytes in a file of 10"),
        (header(b"{" + b" " * 40), "not a whole safetensors file"),
        (header(b"[" * 100_000), "not a whole safetensors file"),
        (header(b"[1]"), "not a whole safetensors file"),
        (header(b'{"a": 1}'), "not a whole safetensors file"),
        (header(json.dumps({"a": ENTRY}).encode(), b"1234567"), "and its header speaks of"),
        (header(json.dumps({"a": ENTRY}).encode(), b"123456789"), "and its header speaks of"),
        (header(json.dumps({"a": {**ENTRY, "shape": [3]}}).encode(), b"12345678"), "a has shape [3] in F32"),
        (header(json.dumps({"a": {**ENTRY, "shape": [-2]}}).encode(), b"12345678"), "a has shape"),
        (header(json.dumps({"a": {**ENTRY, "data_offsets": [4, 12]}}).encode(), b"1" * 12), "a hole or an overlap"),
        (header(json.dumps({"a": ENTRY, "b": ENTRY}).encode(), b"1" * 8), "a hole or an overlap"),
        (header(json.dumps({"a": {**ENTRY, "data_offsets": [True, 9]}}).encode(), b"1" * 9), "a has shape"),
        (header(b'{"__metadata__": []}'), "not a whole safetensors file"),
        (header(b"{}"), "looks like nothing that latentd knows (its tensors: none at all)"),
    ],
)  # fmt: skip
def test_malformed_files(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    assert words in refusal(file)


def test_a_file_cut_short(files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    whole = files["sd1"].read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"it has {len(whole) // 2} bytes, and its header speaks of {len(whole)}" in refusal(file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sd1"], "goes: --out DIR, or make onnx MODEL="),
        (["old.ckpt", "--out", "out"], "old.ckpt is a pickle by its name"),
        (["old.pt", "--out", "out"], "old.pt is a pickle by its name"),
        (["nowhere.safetensors", "--out", "out"], "nowhere.safetensors is not there, and nothing is downloaded"),
        (["sd2", "--out", "out"], "does not tell what it predicts"),
        ([".", "--out", "out", "--prediction", "epsilon"], "prediction epsilon is for single files"),
    ],
)
def test_the_command(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(files.get(word, word)) for word in arguments]) == 1
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and not told.out
    assert not (tmp_path / "out").exists()


def test_the_command_names_the_choices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_PREDICTION", "v")
    with pytest.raises(SystemExit):
        main(["a.safetensors"])
    assert "LATENTD_PREDICTION is 'v'; it takes auto, epsilon or v_prediction" in capsys.readouterr().err
