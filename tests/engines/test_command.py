"""python -m engines as it is typed: what it says, and that serving then has nothing left to compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import devices, lock, measure, store
from engines import openvino as backend
from engines.__main__ import main
from engines.artifact import Artifact
from engines.cache import entries
from engines.openvino import OpenVinoBackend
from engines.openvino_build import OpenVinoBuilder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never(*_: object) -> Any:
    pytest.fail("what was built was made again")


def use(model: OpenVinoBackend) -> None:
    """All that serving does."""
    default = model.spec.defaults
    model.encode(np.arange(model.spec.text.tokens))
    denoiser = model.denoiser(default.width, default.height, 2)
    denoiser.run([0, 1])
    model.decode(denoiser.outputs[0])


def test_what_is_built_is_what_serving_uses(
    artifact: Artifact,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["build", str(artifact.folder), "--backend", "openvino", "--precision", "f32", "--rows", "1,2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "tiny for openvino on cpu: 3 engines, 3 to build" in said
    head, _, encoder, unet, decoder, *_ = said[said.index("engine  ") :].splitlines()
    assert head.split() == ["engine", "shapes", "target", "size", "build", "step:", "median", "(p80)"]
    assert encoder.startswith("text_encoder  ids 1x16 ") and " ms (" in encoder
    assert unet.startswith("unet          sample 1x3x12x12, timestep 1, context 1x16x") and "cpu" in unet
    assert "1 rows " in unet and "; 2 rows " in unet and unet.count(" ms (") == 2
    assert decoder.startswith("vae_decoder   latents 1x3x12x12 ")
    assert f"engines are in {folder / 'engines'}" in said

    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoBuilder, "compiled", never)
        patch.setattr(backend, "_costs", never)
        use(OpenVinoBackend(artifact, "f32"))
        assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 engines, 0 to build" in said and said.count("  valid  ") == 3 and "measuring" not in said
    assert said[said.index("engine  ") :].splitlines()[3] == unet, "the times are remembered"

    copied = tmp_path / "elsewhere"
    folder.rename(copied)  # nothing in it knows where it lies
    monkeypatch.setenv("LATENTD_CACHE", str(copied))
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoBuilder, "compiled", never)
        use(OpenVinoBackend(artifact, "f32"))


def test_serving_first_and_building_then(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "steps_of", lambda *_: {})
    monkeypatch.setattr(backend, "_costs", lambda denoisers: dict.fromkeys(denoisers, 1.0))
    use(OpenVinoBackend(artifact, "f32"))
    assert main(["build", str(artifact.folder), "--precision", "f32"]) == 0
    assert "3 engines, 0 to build" in capsys.readouterr().out


def test_onnxruntime_builds_nothing_and_says_so(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(artifact.folder), "--backend", "onnxruntime"]) == 0
    said = capsys.readouterr().out
    assert "onnxruntime runs the graphs of tiny as they are: there is nothing to build ahead" in said
    assert [line.split()[0] for line in said.splitlines() if " ms (" in line] == ["text_encoder", "unet", "vae_decoder"]
    assert not entries(folder / "engines")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--arch", "sm_89"], "ARCH=sm_89: backend openvino builds for the CPU at hand; leave ARCH away"),
        (
            ["--target", "sm_89", "--backend", "onnxruntime"],
            "ARCH=sm_89: backend onnxruntime builds for the CPU at hand",
        ),
        (
            ["--backend", "tensorrt"],
            "building needs tensorrt, which is not installed: pip install -e '.[gpu]' in a clone",
        ),
        (["--backend", "torch"], "backend 'torch' builds no engines; there are: auto, openvino, onnxruntime, tensorrt"),
        (["--precision", "f8"], "precision 'f8' is unknown; openvino does auto, bf16 and f32"),
        (["--rows", "0"], "ROWS=0: it takes numbers from 1 to 64"),
        (["--chunks", "0"], "CHUNKS=0: it takes numbers from 1 to "),
        (["--chunks", "1,99"], "CHUNKS=1,99: it takes numbers from 1 to "),
        (["--attention", "triton"], "attention triton: backend openvino makes no plans that could have it"),
        (
            ["--attention", "triton", "--backend", "tensorrt_rtx", "--arch", "sm_89"],
            "attention 'triton': TensorRT for RTX",
        ),
        (["--rows", "2,,4"], "ROWS=2,,4: it takes numbers from 1 to 64"),
        (["--sizes", "24x25"], "SIZES=24x25: it takes WIDTHxHEIGHT, multiples of "),
        (["--sizes", "24"], "SIZES=24: it takes WIDTHxHEIGHT, multiples of "),
    ],
)
def test_refusals(artifact: Artifact, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(artifact.folder), *words]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(why) and "\n" not in told


def test_variables_come_from_the_environment(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["build"]) == 2
    assert "give MODEL" in capsys.readouterr().err
    monkeypatch.setenv("LATENTD_MODEL", str(artifact.folder))
    monkeypatch.setenv("LATENTD_ARCH", "sm_75")
    assert main(["build"]) == 1
    assert "ARCH=sm_75" in capsys.readouterr().err
    monkeypatch.setenv("LATENTD_CACHE_GB", "lots")
    assert main(["build", "--arch", ""]) == 1
    assert "LATENTD_CACHE_GB is 'lots'" in capsys.readouterr().err


def test_errors_go_into_the_manifests(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.torch.available_cores", lambda: 1)  # beside OpenVINO's threads torch's only spin
    monkeypatch.setattr(backend, "_costs", lambda denoisers: dict.fromkeys(denoisers, 1.0))
    words = [str(artifact.folder), "--precision", "f32", "--steps", "2", "--samplers", "euler"]
    assert main(["check", *words]) == 0
    assert "WRONG" not in capsys.readouterr().out
    errors = {manifest["identity"]["network"]: manifest["errors"] for _, manifest in store.manifests()}
    assert errors["text_encoder"].keys() == {"text_encoder"} and errors["vae_decoder"].keys() == {"vae_decoder"}
    assert errors["unet"].keys() == {*(f"unet, timestep {t}" for t in (1, 500, 999)), "euler, 2 steps: latents"}
    assert all(0 < error < 1e-3 for each in errors.values() for error in each.values())
    assert all(manifest["checked"]["device"] == devices.this_cpu() for _, manifest in store.manifests())


def test_engines_for_long_prompts(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, whatever the lengths share."""
    asked: list[Any] = []
    monkeypatch.setattr("engines.command.build_all", lambda artifact, builder, orders, *_: asked.extend(orders) or [])
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

    def write(_: object, out: Path) -> dict[str, Any]:
        out.write_bytes(b"a plan")
        return {}

    store.keep(identity, {}, write)
    for state in ("whole, its SHA-256 is the one in its manifest", f"; run `{again}` to build it again"):
        assert main(["check", str(artifact.folder), "--backend", "tensorrt_rtx"]) == 1
        said = capsys.readouterr().out
        assert said.startswith("  unet for sm_89: ") and state in said
        assert (
            "nothing was compared: plans of tensorrt_rtx run on NVIDIA GPUs, and none runs them here; 1 plan of tiny"
            in said
        )
        (store.place(identity) / "engine").write_bytes(b"A plan")


def test_clean_says_what_it_removed(artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OpenVinoBackend(artifact, "f32")
    (engine,) = entries(folder / "engines")
    assert main(["clean"]) == 0
    assert f"kept {engine}: a live process uses it" in capsys.readouterr().out
    lock.let_go(engine)
    assert main(["clean"]) == 0
    said = capsys.readouterr().out
    assert "removed 1 engine (" in said and str(folder) in said and not entries(folder / "engines")
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == f"nothing to remove in {folder}\n"
