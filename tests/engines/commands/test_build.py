"""python -m engines as it is typed: what it builds, what it says needs no building, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.__main__ import main
from engines.artifact.opened import Artifact
from engines.cache import devices, lock, store
from engines.cache.entries import entries
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import CheckpointError
from pipeline.extras import install

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has the graphs of the session's, and nothing else."""
    if (cache / "graphs").is_dir():
        shutil.copytree(cache / "graphs", tmp_path / "cache/graphs")
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime", "torch"])
def test_what_compiles_from_memory_needs_no_building(
    backend: str, checkpoint: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "2,4", "--sizes", "24x24", "--chunks", "1,2", "--precision", "f32"]
    assert main(["build", str(checkpoint.path), "--backend", backend, *words]) == 0
    name = "openvino" if backend == "auto" else backend
    assert capsys.readouterr().out == (
        f"tiny: {name} compiles from memory at every start, so nothing needs building ahead\n"
    )
    assert not entries(folder / "engines") and not entries(folder / "artifacts")


def test_weights_that_do_not_fit_are_told_there_too(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(checkpoint.path, tmp_path / "tiny"))
    shutil.copyfile(model / "vae/diffusion_pytorch_model.safetensors", model / UNET)
    assert main(["build", str(model)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"{model / UNET} does not fit its config: ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--arch", "sm_89"], "ARCH=sm_89 is for TensorRT's plans; leave it away with backend openvino"),
        (
            ["--target", "sm_89", "--backend", "onnxruntime"],
            "ARCH=sm_89 is for TensorRT's plans; leave it away with backend onnxruntime",
        ),
        (["--attention", "triton"], "ATTENTION=triton is for TensorRT's plans; leave it away with backend openvino"),
        (
            ["--backend", "tensorrt"],
            f"building needs tensorrt, which is not installed: {install('gpu')}",
        ),
        (["--backend", "tvm"], "backend 'tvm' builds no plans; there are: tensorrt_rtx, tensorrt"),
        (["--precision", "f8"], "precision 'f8' is unknown; there are: auto, f32, bf16, f16"),
        (["--rows", "0"], "ROWS=0: it takes numbers from 1 to 64"),
        (["--rows", "2,,4"], "ROWS=2,,4: it takes numbers from 1 to 64"),
        (["--chunks", "0"], "CHUNKS=0: it takes numbers from 1 to "),
        (["--chunks", "1,99"], "CHUNKS=1,99: it takes numbers from 1 to "),
        (["--sizes", "24x25"], "SIZES=24x25: it takes WIDTHxHEIGHT, multiples of "),
        (["--sizes", "24"], "SIZES=24: it takes WIDTHxHEIGHT, multiples of "),
    ],
)
def test_refusals(checkpoint: Checkpoint, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(checkpoint.path), *words]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(why) and "\n" not in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--arch", "sm_89", "--attention", "triton"], "attention 'triton': TensorRT for RTX"),
        (["--arch", "sm_89", "--precision", "f8"], "precision 'f8' is unknown; tensorrt_rtx does auto, f16, bf16, f32"),
        (["--arch", "sm_89", "--rows", "0"], "ROWS=0: it takes numbers from 1 to 64"),
        (["--arch", "sm_89", "--sizes", "24"], "SIZES=24: it takes WIDTHxHEIGHT, multiples of "),
        (["--arch", "sm_90"], "target 'sm_90': TensorRT for RTX "),
    ],
)
def test_plans_that_cannot_be(
    artifact: Artifact, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(artifact.folder), "--backend", "tensorrt_rtx", *words]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(why) and "\n" not in told


@pytest.mark.parametrize(
    ("command", "name", "value", "wanted"),
    [
        ("build", "ROWS", "abc", "LATENTD_ROWS=abc: it takes numbers from 1 to 64"),
        ("build", "CHUNKS", "0", "LATENTD_CHUNKS=0: it takes numbers from 1 to "),
        ("build", "SIZES", "24", "LATENTD_SIZES=24: it takes WIDTHxHEIGHT"),
        ("check", "SIZE", "24", "LATENTD_SIZE is '24'; it takes WIDTHxHEIGHT"),
        ("check", "STEPS", "abc", "LATENTD_STEPS is 'abc'; it takes a whole number from 1 to 150"),
        ("check", "SAMPLERS", "eular", "LATENTD_SAMPLERS has 'eular'; there are "),
        ("check", "PREDICTION", "v", "prediction 'v' is unknown; there are: auto, epsilon, v_prediction"),
        ("build", "PREDICTION", "epsilon", "prediction epsilon is for single files"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    artifact: Artifact,
    command: str,
    name: str,
    value: str,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"LATENTD_{name}", value)
    options = ["--backend", "tensorrt_rtx", "--arch", "sm_89"] if command == "build" else ["--backend", "onnxruntime"]
    assert main([command, str(artifact.folder), *options]) == 1
    assert capsys.readouterr().err.startswith(wanted)


@pytest.mark.parametrize("command", ["build", "check"])
def test_a_file_that_does_not_tell_what_it_predicts_is_told_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def stop(model: Path, prediction: str) -> Checkpoint:
        asked.append(prediction)
        raise CheckpointError("stop here")

    monkeypatch.setattr(f"engines.commands.{command}.open_checkpoint", stop)
    assert main([command, str(tmp_path), "--backend", "onnxruntime", "--prediction", "v_prediction"]) == 1
    monkeypatch.setenv("LATENTD_PREDICTION", "epsilon")
    assert main([command, str(tmp_path), "--backend", "onnxruntime"]) == 1
    assert asked == ["v_prediction", "epsilon"] and capsys.readouterr().err == "stop here\n" * 2


def test_variables_come_from_the_environment(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["build"]) == 2
    assert "give MODEL" in capsys.readouterr().err
    monkeypatch.setenv("LATENTD_MODEL", str(checkpoint.path))
    monkeypatch.setenv("LATENTD_ARCH", "sm_75")
    assert main(["build"]) == 1
    assert "ARCH=sm_75" in capsys.readouterr().err
    monkeypatch.setenv("LATENTD_CACHE_GB", "lots")
    assert main(["build", "--backend", "tensorrt_rtx"]) == 1
    assert "LATENTD_CACHE_GB is 'lots'" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_errors_against_torch(
    backend: str,
    checkpoint: Checkpoint,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engines.cpu.torch.available_cores", lambda: 1)  # beside OpenVINO's threads torch's only spin
    words = ["--backend", backend, "--precision", "f32", "--steps", "2", "--samplers", "euler"]
    assert main(["check", str(checkpoint.path), *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"tiny 24x24: {backend} f32 against torch f32"
    assert [re.split("  +", line)[1:3] for line in said[1:]] == [
        ["ok", what]
        for what in (
            "text_encoder",
            *(f"unet, timestep {t}" for t in (1, 500, 999)),
            "vae_decoder",
            "rows alone and in company of 8",
            "euler, 2 steps: latents",
            "euler, 2 steps: picture",
        )
    ]
    assert not entries(folder / "engines") and len(list(devices.folder().glob("*.json"))) == 1


def test_plans_for_long_prompts(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, whatever the lengths share."""
    asked: list[Any] = []
    monkeypatch.setattr(
        "engines.commands.build.build_all", lambda artifact, builder, orders, *_: asked.extend(orders) or []
    )
    words = ["build", str(artifact.folder), "--backend", "tensorrt_rtx", "--arch", "sm_89", "--rows", "2", "--chunks"]
    assert main([*words, "1,3"]) == 0
    tokens = artifact.spec.text.tokens
    assert [order.network for order in asked] == ["text_encoder", "unet", "vae_decoder", "unet"]
    assert [asked[at].shapes["context"][1] for at in (1, 3)] == [tokens, 3 * tokens]


def test_plans_cannot_be_checked_without_their_card(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = {"artifact": artifact.digest, "backend": "tensorrt_rtx", "target": "sm_89", "network": "unet"}
    identity |= {"precision": "f16", "shapes": {"sample": [4, 3, 12, 16], "timestep": [4]}}
    again = f"make engines MODEL={artifact.folder} BACKEND=tensorrt_rtx ARCH=sm_89 PRECISION=f16 ROWS=4 SIZES=32x24"
    keep(identity)
    for state in ("whole, its SHA-256 is the one in its manifest", f"; run `{again}` to build it again"):
        assert main(["check", str(artifact.folder), "--backend", "tensorrt_rtx"]) == 1
        said = capsys.readouterr().out
        assert said.startswith("  unet for sm_89: ") and state in said
        assert (
            "nothing was compared: plans of tensorrt_rtx run on NVIDIA GPUs, and none runs them here; 1 plan of tiny"
            in said
        )
        (store.place(identity) / "engine").write_bytes(b"A plan")


def test_clean_says_what_it_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = keep({"network": "unet"})
    (folder / "graphs").mkdir(exist_ok=True)
    (folder / "graphs/unet-0.onnx").write_bytes(b"a graph")
    assert main(["clean"]) == 0
    said = capsys.readouterr().out
    assert f"kept {engine}: a live process uses it" in said and " graph" in said
    assert not entries(folder / "graphs")
    lock.let_go(engine)
    assert main(["clean"]) == 0
    said = capsys.readouterr().out
    assert "removed 1 engine (" in said and str(folder) in said and not entries(folder / "engines")
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == f"nothing to remove in {folder}\n"


def keep(identity: dict[str, Any]) -> Path:
    """A plan in the store, in use by this process."""

    def write(_: object, out: Path) -> dict[str, Any]:
        out.write_bytes(b"a plan")
        return {}

    store.keep(identity, {}, write)
    return store.place(identity)
