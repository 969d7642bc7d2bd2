"""A single file is the folder that it was made from, bit for bit, and the one that diffusers reads in it."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from model.clip import ClipText
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from model.weights import check_weights
from pipeline.checkpoint.header import StoredTensor
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.checkpoint.single_file.configs import configs
from pipeline.checkpoint.single_file.kinds import SD1, SD2, UNET, VAE, recognise
from pipeline.checkpoint.single_file.layout import Shapes, text_layout, unet_layout, vae_layout
from pipeline.checkpoint.single_file.marks import Trained
from pipeline.spec import read_spec
from tests.support.original import PARTS, Weights, folder_weights, make_folder, original_weights, write_original

PREDICTION = {"sd1": "epsilon", "sd2": "v_prediction"}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Kind, the folder, and the same model as an original single file."""
    kind, here = request.param, tmp_path_factory.mktemp("single")
    folder = make_folder(here / "folder", kind, prediction=PREDICTION[kind])
    return kind, folder, write_original(folder, kind, here / "model.safetensors")


def stored(checkpoint: Checkpoint, part: str) -> Weights:
    """The tensors of a part by the networks' names, as they are stored."""
    weights, found = checkpoint.weights, {}
    for name, tensor in weights.tensors(part).items():
        shape = tensor.shape[:2] if part == "vae" and tensor.shape[2:] == (1, 1) and ".to_" in name else tensor.shape
        value = torch.from_numpy(weights.array(part, name, shape).copy())
        found[name] = value.view(torch.bfloat16) if weights.is_bfloat16(part, name) else value
    return found


def same(got: Weights, wanted: Weights) -> bool:
    assert got.keys() == wanted.keys()
    return all(got[k].dtype == wanted[k].dtype and torch.equal(got[k], wanted[k]) for k in wanted)


def test_the_folder_comes_back_bit_for_bit(pair: tuple[str, Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    kind, folder, file = pair
    with caplog.at_level(logging.INFO, "latentd.checkpoint"):
        checkpoint = open_checkpoint(file, PREDICTION[kind])
    for part in PARTS:
        assert same(stored(checkpoint, part), folder_weights(folder, part)), part
    assert checkpoint.spec == read_spec(folder) and checkpoint.id == "model" and not checkpoint.has_safety_checker
    assert caplog.messages[0].endswith(f"prediction {PREDICTION[kind]}")
    assert "model_ema (3)" in caplog.messages[1] and "alphas_cumprod (1)" in caplog.messages[1]


def test_the_networks_load_strictly(pair: tuple[str, Path, Path]) -> None:
    checkpoint = open_checkpoint(pair[2], "epsilon")
    check_weights(checkpoint.spec, checkpoint.weights)


def test_diffusers_reads_the_same_weights_in_the_file(pair: tuple[str, Path, Path]) -> None:
    """diffusers' own conversion is the oracle, with the folder's configs."""
    kind, folder, file = pair
    checkpoint = open_checkpoint(file, PREDICTION[kind])
    load: Any = StableDiffusionPipeline.from_single_file
    pipe = load(str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float16, safety_checker=None)
    for part in PARTS:
        theirs = getattr(pipe, part).state_dict()
        ours = {name.removeprefix("text_model."): tensor for name, tensor in stored(checkpoint, part).items()}
        assert same({name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}, ours), part


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_at_full_width_the_configs_are_the_published_ones(kind: str, tmp_path: Path) -> None:
    """runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1, from the shapes alone."""
    text, unet = (
        ({"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}, 8)
        if kind == "sd1"
        else (
            {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 23},
            [5, 10, 20, 20],
        )
    )
    published: dict[str, dict[str, Any]] = {
        "text_encoder/config.json": text,
        "unet/config.json": {
            "attention_head_dim": unet,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": text["hidden_size"],
        },
        "vae/config.json": {"block_out_channels": [128, 256, 512, 512]},
    }
    folder = make_folder(tmp_path, kind, prediction=PREDICTION[kind])
    for name, values in published.items():
        whole = json.loads((folder / name).read_bytes()) | values
        (folder / name).write_text(json.dumps(whole))
    spec = read_spec(folder)
    with torch.device("meta"):
        vae = VaeDecoder(spec.vae).state_dict() | VaeEncoder(spec.vae).state_dict()
        parts: dict[str, Weights] = {
            "text_encoder": dict(ClipText(spec.text).state_dict()),
            "unet": dict(Unet(spec.unet).state_dict()),
            "vae": vae,
        }
        weights = original_weights(parts, kind)
    file = tmp_path / "model.safetensors"
    tensors = {name: StoredTensor(file, "F16", tuple(t.shape), 0, 0) for name, t in weights.items()}
    family, (prefix,) = recognise(file, tensors)
    assert family is (SD1 if kind == "sd1" else SD2)
    layouts = (
        unet_layout(Shapes(file, tensors, UNET)),
        vae_layout(Shapes(file, tensors, VAE)),
        [text_layout(Shapes(file, tensors, prefix), family)],
    )
    for name, values in configs(file, family, *layouts, Trained(PREDICTION[kind], zero_snr=False)).items():
        (folder / name).write_text(json.dumps(values))
    assert read_spec(folder) == spec


def upcast_some(weights: Weights) -> Weights:
    return weights | {name: weights[name].float() for name in sorted(weights)[::3]}


def with_prefix(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {new + k.removeprefix(old) if k.startswith(old) else k: t for k, t in weights.items()}


CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param("sd1", upcast_some, id="mixed types"),
        pytest.param("sd1", with_prefix(f"{CLIP}text_model.", CLIP), id="no text_model."),
        pytest.param("sd1", with_prefix(CLIP, "conditioner.embedders.0.transformer."), id="later code, CLIP"),
        pytest.param("sd2", with_prefix(OPENCLIP, "conditioner.embedders.0.model."), id="later code, OpenCLIP"),
        pytest.param("sd2", upcast_some, id="mixed types, OpenCLIP"),
    ],
)
def test_other_forms_of_the_same_file(tmp_path: Path, kind: str, change: Callable[[Weights], Weights]) -> None:
    """Every tensor keeps its own type, and a fused one's parts keep that of the whole."""
    folder = make_folder(tmp_path / "folder", kind)
    file = write_original(folder, kind, tmp_path / "model.safetensors")
    weights = change({name: t for name, t in load_file(file).items() if t.is_floating_point()})
    save_file(weights, file)
    checkpoint = open_checkpoint(file, "epsilon")
    for part in PARTS:
        got, wanted = stored(checkpoint, part), folder_weights(folder, part)
        assert same({name: tensor.half() for name, tensor in got.items()}, wanted), part
    types = {tensor.dtype for part in PARTS for tensor in stored(checkpoint, part).values()}
    assert types == ({torch.float16, torch.float32} if change is upcast_some else {torch.float16})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_folder(tmp_path / "folder", "sd1", dtype=dtype, levels=2)
    checkpoint = open_checkpoint(write_original(folder, "sd1", tmp_path / "a.safetensors", levels=2))
    assert all(same(stored(checkpoint, part), folder_weights(folder, part)) for part in PARTS)
    assert checkpoint.spec == read_spec(folder)


@pytest.mark.parametrize(
    ("layers", "head", "kept"),
    [(24, True, 23), (24, False, 23), (23, True, 23), (23, False, 23), (4, True, 3), (4, False, 4)],
)
def test_openclips_last_layer_is_left_out(layers: int, head: bool, kept: int) -> None:
    """Published files have all 24; files saved back from diffusers 23. Small towers go by the head after the last."""
    shapes = {
        "token_embedding.weight": (49408, 128),
        "positional_embedding": (77, 128),
        **{f"transformer.resblocks.{i}.mlp.c_fc.weight": (512, 128) for i in range(layers)},
        **({"text_projection": (128, 128)} if head else {}),
    }
    tensors = {name: StoredTensor(Path("a"), "F16", shape, 0, 0) for name, shape in shapes.items()}
    assert text_layout(Shapes(Path("a"), tensors, ""), SD2).layers == kept


def test_memory_stays_far_below_the_file(pair: tuple[str, Path, Path]) -> None:
    """What is opened is read by the page: the vocabulary's 49,408 words take most of what Python has."""
    tracemalloc.start()
    checkpoint = open_checkpoint(pair[2], "epsilon")
    for part in PARTS:
        for name, tensor in checkpoint.weights.tensors(part).items():
            checkpoint.weights.array(part, name, tensor.shape)
    checkpoint.weights.digest()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20
