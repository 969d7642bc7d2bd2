"""Checkpoint to artifact: what is written, what stays as it was, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import export.artifact as stage
from engines.artifact import CONFIGS, GRAPHS, MANIFEST, OPTIONAL_CONFIGS, Artifact, is_artifact
from engines.disk import DiskError
from engines.first_use import artifact_of
from export.artifact import export
from export.check import NETWORK_TOLERANCE, TRAJECTORY_TOLERANCE, ExportError, network_error, session
from export.graph import trace
from export.networks import NETWORKS
from export.point import point
from pipeline.checkpoint.header import stored_tensors
from pipeline.errors import CheckpointError
from pipeline.spec import Spec, read_spec
from tests.checkpoints import make_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"


def digests(folder: Path) -> dict[str, str]:
    """Of every file below, by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def linked(source: Path, hub: Path) -> Path:
    """A folder of links to copies of the files of `source`, as model hubs' caches are: blobs/ and snapshots/."""
    farm = hub / "snapshots" / source.name
    (hub / "blobs").mkdir(parents=True)
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".onnx" and path.name != MANIFEST:
            own = farm / path.relative_to(source)
            own.parent.mkdir(parents=True, exist_ok=True)
            blob = hub / "blobs" / path.relative_to(source).as_posix().replace("/", "-")
            blob.write_bytes(path.read_bytes())
            own.symlink_to(os.path.relpath(blob, own.parent))
    return farm


def names() -> set[str]:
    """The files of the tiny artifact: no shards, its own latentd.json."""
    weights = {"text_encoder/model.safetensors", UNET, "vae/diffusion_pytorch_model.safetensors"}
    return {*GRAPHS.values(), *CONFIGS, *OPTIONAL_CONFIGS, *weights}


def test_the_manifest(artifact: Artifact) -> None:
    text = (artifact.folder / MANIFEST).read_bytes()
    manifest: dict[str, Any] = json.loads(text)
    assert artifact.digest == hashlib.sha256(text).hexdigest()
    assert manifest.keys() == {"format", "spec", "preview", "errors", "tools", "files", "seal"}
    assert manifest["files"].keys() == names()
    for name, entry in manifest["files"].items():
        data = (artifact.folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
    assert manifest["spec"] == json.loads(json.dumps(artifact.spec.to_json()))
    errors = manifest["errors"]
    assert errors.keys() == {*GRAPHS, "trajectory"}
    assert 0 < errors.pop("trajectory") < TRAJECTORY_TOLERANCE
    assert all(0 < error < NETWORK_TOLERANCE for error in errors.values())
    assert manifest["tools"].pop("opset") == 23
    assert all(importlib.metadata.version(tool) == version for tool, version in manifest["tools"].items())
    assert {"torch", "onnx", "onnxruntime"} <= manifest["tools"].keys()
    assert str(artifact.folder).encode() not in text


def test_nothing_else_is_left_in_the_folder(artifact: Artifact) -> None:
    assert digests(artifact.folder).keys() == {*names(), MANIFEST}


Moved = tuple[Path, Artifact]


@pytest.fixture(scope="module")
def moved(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    """The same checkpoint as a folder of links, exported at its first use by a process of its own; and those links."""
    farm = linked(artifact.folder, tmp_path_factory.mktemp("hub") / "models--tiny")
    before = digests(artifact.folder), digests(farm.parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTD_CACHE", str(tmp_path_factory.mktemp("own") / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # as tests/conftest.py does for torch in this process
        yield farm, artifact_of(farm)
    assert (digests(artifact.folder), digests(farm.parents[1])) == before, "the source was touched"


def test_another_folder_gets_everything(moved: Moved) -> None:
    _, out = moved
    assert out.folder.parents[1].name == "artifacts" and out.id == "tiny"
    assert digests(out.folder).keys() == {*names(), MANIFEST}
    assert not any(path.is_symlink() for path in out.folder.rglob("*")), "it needs nothing of its source"


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(moved: Moved, artifact: Artifact) -> None:
    ours, theirs = digests(moved[1].folder), digests(artifact.folder)
    # The manifest has the errors that were found, which go with the number of threads.
    assert {name for name in ours if ours[name] != theirs[name]} <= {MANIFEST}


def test_a_second_use_finds_the_first_export(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    farm, out = moved
    monkeypatch.setattr("engines.first_use._export", lambda *_: pytest.fail("exported again"))
    assert artifact_of(farm).digest == out.digest
    assert artifact_of(out.folder).folder == out.folder, "an artifact is served as it is"


def test_a_preview_for_the_latents_of_the_model(artifact: Artifact, v_artifact: Artifact) -> None:
    for made in (artifact, v_artifact):
        assert made.preview.shape == (3, made.spec.vae.latent_channels + 1)
        told = json.loads((made.folder / MANIFEST).read_text())["preview"]["explained"]
        assert 0 < told < 1
        # Even random encoders know dark from bright: the constant is not all of the map.
        assert abs(made.preview[:, :-1]).max() > 1e-4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made")


def refusal(checkpoint: Path, out: Path | None = None) -> str:
    with pytest.raises((CheckpointError, DiskError)) as caught:
        export(checkpoint, out, lambda line: None)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_of_links_is_refused_in_place(checkpoint: Path, tmp_path: Path) -> None:
    farm = linked(checkpoint, tmp_path / "hub")
    message = refusal(farm)
    assert " is a link, and readers of ONNX refuse weights behind links" in message
    assert f"make onnx MODEL={farm} OUT=dir" in message
    assert not list(farm.rglob("*.onnx"))


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", UNET, "latentd.json", "unet"])
@pytest.mark.parametrize("out", [None, "out"])
def test_a_link_out_of_the_folder_is_refused(checkpoint: Path, tmp_path: Path, name: str, out: str | None) -> None:
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    before = digests(tmp_path)
    message = refusal(checkpoint, tmp_path / out if out else None)
    assert f"{checkpoint / name}" in message and f"is a link to {tmp_path / 'elsewhere'}" in message
    assert "outside its folder; copy the file itself there" in message
    with pytest.raises(CheckpointError, match="is a link to .*elsewhere"):
        artifact_of(checkpoint)
    assert digests(tmp_path) == before


def test_a_link_within_the_folder_is_copied_as_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer/merges.txt").rename(checkpoint / "tokenizer/merges")
    (checkpoint / "tokenizer/merges.txt").symlink_to("merges")
    assert "tokenizer/merges.txt" in stage._sources(checkpoint)


def test_hard_links_are_refused_in_place(checkpoint: Path, tmp_path: Path) -> None:
    os.link(checkpoint / UNET, tmp_path / "second name")
    message = refusal(checkpoint)
    assert message.startswith(f"{checkpoint / UNET} is a link") and "OUT=dir" in message


@pytest.mark.parametrize("name", [".", "unet", "vae"])
def test_a_folder_that_cannot_be_written(checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint / name
    access = os.access  # asked, not tried: who runs the tests may be allowed everything
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    assert (
        refusal(checkpoint) == f"{folder} cannot be written; give another folder: make onnx MODEL={checkpoint} OUT=dir"
    )


def test_out_is_another_folder(checkpoint: Path) -> None:
    assert "is the checkpoint itself" in refusal(checkpoint, checkpoint / "unet" / "..")


def test_out_cannot_be_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert f"cannot make {tmp_path / 'file'}" in refusal(checkpoint, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_pickle_is_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / UNET).rename(checkpoint / "unet/diffusion_pytorch_model.bin")
    message = refusal(checkpoint)
    assert "pickle (diffusion_pytorch_model.bin)" in message and "safetensors" in message


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "tokenizer/vocab.json", "vae/config.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert str(checkpoint / name) in refusal(checkpoint)


def test_a_truncated_file_is_refused_before_anything_is_written(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_text("of an earlier export")
    path = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    before = digests(checkpoint)
    assert f"{path} is not a whole safetensors file" in refusal(checkpoint)
    assert digests(checkpoint) == before


def test_weights_in_a_type_that_onnx_lacks(checkpoint: Path) -> None:
    path = checkpoint / "text_encoder/model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("fc1.weight"))
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, path)
    message = refusal(checkpoint)
    assert str(path) in message and name in message and "F8_E4M3" in message and "F16, BF16" in message


def test_a_graph_that_computes_something_else_is_not_vouched_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / MANIFEST).write_text("of an earlier export")
    network = NETWORKS[0]

    def load(spec: Spec, folder: Path) -> nn.Module:
        """A network whose weights are not quite those in the file that the graph points into."""
        net = network.load(spec, folder)
        with torch.no_grad():
            next(p for name, p in net.named_parameters() if name.endswith("fc1.weight")).mul_(1.01)
        return net

    monkeypatch.setattr(stage, "NETWORKS", [replace(network, load=load), *NETWORKS[1:]])
    with pytest.raises(ExportError, match=r"text_encoder: ONNX Runtime differs from torch by .*; at most 1e-04"):
        export(checkpoint, say=lambda line: None)
    assert not is_artifact(checkpoint)


def shard(folder: Path, stem: str, variant: str) -> None:
    """One file becomes two and their index, as large models are published."""
    weights = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    places = {name: f"{stem}-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
    for place in set(places.values()):
        save_file({name: tensor for name, tensor in weights.items() if places[name] == place}, folder / place)
    (folder / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_go_with_their_index(
    checkpoint: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(checkpoint / "unet", "diffusion_pytorch_model", variant)
    unet, out = NETWORKS[1], tmp_path / "out"

    class Loaded(Exception):  # noqa: N818
        """Everything is where it is needed: enough."""

    def load(spec: Spec, folder: Path) -> nn.Module:
        assert folder == checkpoint, "the copies are compared with what they are copies of"
        assert unet.load(spec, out).state_dict().keys() == unet.load(spec, checkpoint).state_dict().keys()
        stored = stored_tensors(out, "unet")
        assert {tensor.path.name for tensor in stored.values()} == {
            "diffusion_pytorch_model-0.safetensors",
            "diffusion_pytorch_model-1.safetensors",
        }
        raise Loaded

    monkeypatch.setattr(stage, "NETWORKS", [replace(unet, load=load)])
    with pytest.raises(Loaded):
        export(checkpoint, out, lambda line: None)
    assert digests(out) == {name: digest for name, digest in digests(checkpoint).items() if name in digests(out)}
    assert f"unet/diffusion_pytorch_model.safetensors.index{variant}.json" in digests(out)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, onnx.TensorProto.BFLOAT16), (torch.float32, onnx.TensorProto.FLOAT)]
)
def test_weights_of_other_types_and_in_shards(tmp_path: Path, dtype: torch.dtype, kind: int) -> None:
    checkpoint = make_checkpoint(tmp_path, dtype=dtype)
    shard(checkpoint / "text_encoder", "model", "")
    network, spec = NETWORKS[0], read_spec(checkpoint)
    net, path = network.load(spec, checkpoint), checkpoint / network.graph
    stored = stored_tensors(checkpoint, network.part)
    model = onnx.load_from_string(trace(network, spec))
    point(model, stored, path.parent)
    path.write_bytes(model.SerializeToString())
    graph = model.graph
    outside = [tensor for tensor in graph.initializer if tensor.external_data]
    assert len(outside) == len(list(net.parameters())) and {tensor.data_type for tensor in outside} == {kind}
    places = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    assert places == {"model-0.safetensors", "model-1.safetensors"}
    assert any(node.op_type == "Cast" and "weight" in node.input[0] for node in graph.node) == (dtype != torch.float32)
    assert network_error(network, spec, net, session(path)) < NETWORK_TOLERANCE


def test_a_failed_write_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = digests(checkpoint)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(stage, "trace", lambda *_: onnx.ModelProto(ir_version=10).SerializeToString())
    assert "cannot write" in refusal(checkpoint)
    assert digests(checkpoint) == before
