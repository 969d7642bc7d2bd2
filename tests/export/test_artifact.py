"""Checkpoint to artifact: what is written, where, what stays as it was, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import export.artifact as stage
from engines.artifact.opened import FORMAT, GRAPHS, MANIFEST, Artifact, is_artifact, open_artifact
from engines.cache import disk
from engines.cache.disk import DiskError
from engines.choice import Choice
from engines.model import load
from export.__main__ import main
from export.artifact import export
from export.networks import NETWORKS
from export.parity import NETWORK_TOLERANCE, TRAJECTORY_TOLERANCE, ExportError
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.checkpoint.weights import Weights
from pipeline.errors import CheckpointError
from pipeline.spec import Spec
from tests.support.checkpoints import make_checkpoint
from tests.support.layouts import PATHS, TEXT, UNET, files, hub_cache, state

ROOT = Path(__file__).parents[2]


def quiet(_: str) -> None:
    pass


def names(checkpoint: Checkpoint) -> set[str]:
    return {*GRAPHS.values(), *PATHS.values(), *checkpoint.small_files()}


def test_the_manifest(artifact: Artifact, checkpoint: Checkpoint) -> None:
    text = (artifact.folder / MANIFEST).read_bytes()
    manifest: dict[str, Any] = json.loads(text)
    assert artifact.digest == hashlib.sha256(text).hexdigest()
    assert manifest.keys() == {"format", "spec", "errors", "tools", "files", "seal"}
    assert manifest["files"].keys() == names(checkpoint)
    for name, entry in manifest["files"].items():
        data = (artifact.folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
    assert manifest["spec"] == json.loads(json.dumps(checkpoint.spec.to_json()))
    errors = manifest["errors"]
    assert errors.keys() == {*GRAPHS, "trajectory"}
    assert 0 < errors.pop("trajectory") < TRAJECTORY_TOLERANCE
    assert all(0 < error < NETWORK_TOLERANCE for error in errors.values())
    assert manifest["tools"].pop("opset") == 23
    assert all(importlib.metadata.version(tool) == version for tool, version in manifest["tools"].items())
    assert {"torch", "onnx", "onnxruntime"} <= manifest["tools"].keys()
    assert str(artifact.folder).encode() not in text and str(checkpoint.path).encode() not in text


def test_nothing_else_is_in_the_folder_or_beside_it(artifact: Artifact, checkpoint: Checkpoint) -> None:
    assert files(artifact.folder).keys() == {*names(checkpoint), MANIFEST}
    assert os.listdir(artifact.folder.parent) == [artifact.folder.name]
    assert not any(path.is_symlink() for path in artifact.folder.rglob("*")), "it needs nothing of its checkpoint"


def test_it_is_a_checkpoint_of_the_same_weights(artifact: Artifact, checkpoint: Checkpoint) -> None:
    again = open_checkpoint(artifact.folder)
    assert again.weights.digest() == checkpoint.weights.digest() and again.spec == checkpoint.spec
    assert again.small_files() == checkpoint.small_files()


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """From a hub's cache of it, where every file is a link; and nothing there is touched."""
    snapshot = hub_cache(checkpoint.path, tmp_path / "models--a--tiny")
    before, out = state(tmp_path / "models--a--tiny"), tmp_path / "tiny"
    command = [sys.executable, "-W", "ignore", "-m", "export", str(snapshot), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as tests/conftest.py does for torch in this process
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    ours, theirs = files(out), files(artifact.folder)
    assert ours.keys() == theirs.keys()
    # The manifest has the errors that were found, which go with the number of threads.
    assert {name for name in ours if ours[name] != theirs[name]} <= {MANIFEST}
    assert state(tmp_path / "models--a--tiny") == before
    assert ran.stdout.splitlines()[-1] == f"artifact {open_artifact(out).digest[:12]}: {out}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refusal(folder: Path, out: Path) -> str:
    """The sentence of an export; nothing was written by then, neither in the checkpoint nor beside `out`."""
    place = Path(os.path.commonpath([folder.parent.absolute(), out.parent.absolute()]))
    before = state(place)
    with pytest.raises((CheckpointError, DiskError)) as caught:
        export(open_checkpoint(folder), out, quiet)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    assert state(place) == before
    return message


@pytest.mark.parametrize("name", ["", "unet", "unet/..", "new", "unet/new"])
def test_nothing_is_written_into_a_checkpoint(folder: Path, name: str) -> None:
    message = refusal(folder, folder / name)
    assert f"OUT={folder / name} is the checkpoint or in it, where nothing is written; name another folder" == message


def test_nor_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert "is the checkpoint or in it" in refusal(folder, tmp_path / "link")
    assert "is the checkpoint or in it" in refusal(tmp_path / "link", folder)


def test_out_is_no_file(folder: Path, out: Path) -> None:
    out.write_bytes(b"mine")
    assert refusal(folder, out) == f"OUT={out} is no folder; name one that is new or empty"


def test_out_is_no_mount_point(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of a container: no folder can be renamed to it, which would show after minutes of work."""
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    assert refusal(folder, out) == f"OUT={out} is a mount point, which nothing can replace; name a folder in it"


@pytest.mark.parametrize(
    "strange",
    [
        {"notes.txt": "mine"},
        {MANIFEST: '{"made_by": "another tool"}', "unet/model.onnx": "an ONNX export of another tool"},
        {MANIFEST: json.dumps({"format": FORMAT, "spec": {}, "files": [], "errors": {}})},
        {MANIFEST: json.dumps({"format": 2, "spec": {}, "files": {UNET: {}}, "errors": {}}), UNET: "the only copy"},
    ],
    ids=["a file", "another tool's manifest and graph", "a manifest of lists", "what was a checkpoint of format 2"],
)
def test_what_others_put_into_out_stays(folder: Path, out: Path, strange: dict[str, str]) -> None:
    for name, text in strange.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    message = refusal(folder, out)
    assert any(message.startswith(f"OUT={out} holds {name}, which no manifest of format") for name in strange)


def test_what_others_put_beside_an_artifact_stays(folder: Path, artifact: Artifact, out: Path) -> None:
    disk.make(out)
    for name in (*files(artifact.folder), "unet/mine.safetensors"):
        disk.make((out / name).parent)
        (out / name).write_bytes((artifact.folder / name).read_bytes() if name in files(artifact.folder) else b"mine")
    assert f"OUT={out} holds unet/mine.safetensors" in refusal(folder, out)
    (out / "unet/mine.safetensors").unlink()
    (out / "unet/link").symlink_to(folder)
    assert f"OUT={out} holds unet/link" in refusal(folder, out)


def test_another_tools_manifest_is_no_artifact(folder: Path, artifact: Artifact, tmp_path: Path) -> None:
    """The checkpoint is opened, served and exported as what it is, and the other tool's files stay."""
    strange = {MANIFEST: '{"format": 7, "files": []}', "unet/model.onnx": "another's", "unet/openvino_model.xml": "x"}
    for name, text in strange.items():
        (folder / name).write_text(text)
    before = state(folder)
    assert not is_artifact(folder)
    checkpoint = open_checkpoint(folder)
    assert load(checkpoint, Choice("onnxruntime")).digest == open_checkpoint(artifact.folder).weights.digest()
    assert main([str(folder)]) == 1, "without OUT= nothing is written anywhere"
    export(checkpoint, tmp_path / "out", quiet)
    assert state(folder) == before
    assert files(tmp_path / "out").keys() == files(artifact.folder).keys()


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "tokenizer/vocab.json", "vae/config.json"])
def test_a_missing_file_is_named(folder: Path, out: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder, out)


@pytest.mark.parametrize("fault", ["truncated", "not a number", "of a type that is not read", "of another shape"])
def test_unsound_weights_are_refused_before_anything_is_written(folder: Path, out: Path, fault: str) -> None:
    path = folder / TEXT
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        assert f"{path} is not a whole safetensors file" in refusal(folder, out)
        return
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("fc1.weight"))
    changed = {
        "not a number": torch.full_like(weights[name], float("nan")),
        "of a type that is not read": weights[name].to(torch.float8_e4m3fn),
        "of another shape": weights[name][:-1].contiguous(),
    }[fault]
    save_file(weights | {name: changed}, path)
    words = {"not a number": "holds NaN", "of a type that is not read": "F8_E4M3", "of another shape": "has shape"}
    message = refusal(folder, out)
    assert str(path) in message and name in message and words[fault] in message


def test_a_graph_that_computes_something_else_is_not_vouched_for(
    checkpoint: Checkpoint, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NETWORKS[0]

    def load(spec: Spec, weights: Weights) -> nn.Module:
        """A network whose weights are not quite those in the file that the graph points into."""
        net = network.load(spec, weights)
        with torch.no_grad():
            next(p for name, p in net.named_parameters() if name.endswith("fc1.weight")).mul_(1.01)
        return net

    monkeypatch.setattr(stage, "NETWORKS", [replace(network, load=load), *NETWORKS[1:]])
    with pytest.raises(ExportError, match=r"text_encoder: ONNX Runtime differs from torch by .*; at most 1e-04"):
        export(checkpoint, out, quiet)
    assert not list(out.parent.iterdir()), "nothing is left, also not beside it"


def test_a_safety_checker_is_said_aloud(folder: Path, out: Path) -> None:
    assert not open_checkpoint(folder).has_safety_checker
    index = json.loads((folder / "model_index.json").read_bytes())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        raise InterruptedError  # before the export's work begins

    with pytest.raises(InterruptedError):
        export(open_checkpoint(folder), out, say)
    assert lines == ["warning: the checkpoint's safety checker is not run: pictures are delivered as they come"]
    assert not out.exists()
