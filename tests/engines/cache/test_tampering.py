"""Every byte that matters: whatever is changed in an artifact, it is refused by name, whoever signs the change.

tests/engines/artifact/test_opened.py has the manifest's own faults. Here files are changed, and the manifest too where
the change is meant to pass its digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.__main__ import main
from engines.artifact.opened import GRAPHS, MANIFEST, Artifact, open_artifact
from engines.cache.sealed import sealed
from graphs.wire import external_files
from pipeline.errors import CheckpointError

MEND = "export it again with `make onnx MODEL=checkpoint OUT=dir`"
UNET = "unet/diffusion_pytorch_model.safetensors"
FLIPS = 6  # a file


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.folder, tmp_path / "own"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_artifact(folder)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 1200
    assert message.endswith(MEND), "say how to mend it"
    return message


def manifest_of(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / MANIFEST).read_bytes())
    values.pop("seal", None)
    return values


def vouch(folder: Path, do: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Write the manifest again, with the digests of what is there: by somebody who may, and means harm."""
    manifest = manifest_of(folder)
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    do(manifest)
    (folder / MANIFEST).write_bytes(sealed(manifest))


def names_of(folder: Path) -> list[str]:
    return [*manifest_of(folder)["files"]]


def test_random_bytes_of_every_file(folder: Path) -> None:
    dice = random.Random(4)
    for name in names_of(folder):
        whole = (folder / name).read_bytes()
        for _ in range(FLIPS):
            damaged = bytearray(whole)
            damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
            (folder / name).write_bytes(damaged)
            assert f"{folder / name} is not the file that the manifest vouches for" in refusal(folder)
        (folder / name).write_bytes(whole)
    open_artifact(folder)


def test_random_bytes_of_the_manifest_change_nothing_that_is_served(folder: Path, artifact: Artifact) -> None:
    """Refused; or read as a space, in a figure that nobody serves by: what is served is the same."""
    dice, whole = random.Random(5), (folder / MANIFEST).read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        (folder / MANIFEST).write_bytes(damaged)
        try:
            opened = open_artifact(folder)
        except CheckpointError as error:
            refused += 1
            assert str(folder) in str(error) and str(error).isprintable()
        else:
            assert opened.spec == artifact.spec and opened.digest != artifact.digest
    assert refused > 30


@pytest.mark.parametrize("name", [*GRAPHS.values(), UNET, "tokenizer/vocab.json", "latentd.json"])
@pytest.mark.parametrize("what", ["cut", "longer", "empty", "a pipe", "a folder", "a link"])
@pytest.mark.timeout(20)  # a pipe would be waited for
def test_each_kind_of_damage(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "a link":  # with the very bytes
        (tmp_path / "elsewhere").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes({"cut": whole[:-1], "longer": whole + b"\0", "empty": b""}[what])
    assert str(path) in refusal(folder)


def test_a_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert f"{folder / 'unet'}" in refusal(folder) and "is a link" in refusal(folder)


def test_files_of_another_artifact(folder: Path, v_artifact: Artifact) -> None:
    theirs = names_of(v_artifact.folder)
    for name in names_of(folder):
        if name in theirs and (v_artifact.folder / name).read_bytes() != (folder / name).read_bytes():
            own = (folder / name).read_bytes()
            shutil.copyfile(v_artifact.folder / name, folder / name)
            assert f"{folder / name} is not the file" in refusal(folder)
            (folder / name).write_bytes(own)
    shutil.copyfile(v_artifact.folder / MANIFEST, folder / MANIFEST)
    assert str(folder) in refusal(folder)


def test_files_of_one_artifact_in_each_others_place(folder: Path) -> None:
    decoder, encoder = folder / GRAPHS["vae_decoder"], folder / GRAPHS["vae_encoder"]
    decoder.rename(folder / "away")
    encoder.rename(decoder)
    (folder / "away").rename(encoder)
    assert "is not the file that the manifest vouches for" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer/added_tokens.json", "tokenizer/tokenizer.json"])
def test_a_small_file_that_was_added(folder: Path, name: str) -> None:
    assert name not in names_of(folder)
    (folder / name).write_text("{}")
    assert f"does not name {name}" in refusal(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    assert f"does not name {name}" in refusal(folder)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda files: files.update({UNET: {"sha256": "0" * 64}}), "is not the file"),
        (lambda files: files.update({UNET: {"sha256": None}}), "is not the file"),
        (lambda files: files[UNET].update(sha256=files[UNET]["sha256"].upper()), "is not the file"),
        (lambda files: files.update({UNET: {}}), "is damaged"),
        (lambda files: files.update({UNET: None}), "is damaged"),
        (lambda files: files.pop(UNET), "takes weights from 'diffusion_pytorch_model.safetensors', which"),
        (lambda files: files.pop(GRAPHS["unet"]), "does not name unet/model.onnx"),
        (lambda files: files.update({"UNET/model.onnx": files.pop("unet/model.onnx")}), "not name unet/model.onnx"),
        (lambda files: files.update({"unet/./model.onnx": files["unet/model.onnx"]}), "a roundabout way"),
        (lambda files: files.update({"unet//model.onnx": files["unet/model.onnx"]}), "a roundabout way"),
        (lambda files: files.update({"a\0b": {"sha256": "0"}}), "missing"),
        (lambda files: files.update({"\ud800": {"sha256": "0"}}), "missing"),
        (lambda files: files.update({"x" * 5000: {"sha256": "0"}}), "missing"),
        (lambda files: files.update({"/dev/zero": {"sha256": "0"}}), "outside its folder"),
        (lambda files: files.update({"unet": {"sha256": "0"}}), "missing"),
        (lambda files: files.clear(), "does not name"),
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_an_edited_list_of_files(folder: Path, do: Callable[[dict[str, Any]], object], words: str) -> None:
    vouch(folder, lambda manifest: do(manifest["files"]))
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("files", [], "is damaged"),
        ("files", None, "is damaged"),
        ("spec", None, "another spec"),
        ("spec", [], "another spec"),
    ],
)
def test_an_edited_manifest(folder: Path, key: str, value: object, words: str) -> None:
    vouch(folder, lambda manifest: manifest.update({key: value}))
    assert words in refusal(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["a pipe", "a device", "a folder", "large", "twice"])
def test_a_manifest_that_is_none(folder: Path, what: str) -> None:
    path = folder / MANIFEST
    text = path.read_bytes()
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a device":
        path.symlink_to("/dev/zero")
    elif what == "a folder":
        path.mkdir()
    elif what == "twice":
        path.write_bytes(text.replace(b"{", b'{"files": {}, ', 1))
    else:
        with path.open("wb") as file:
            file.truncate(1 << 34)
    assert str(path) in refusal(folder)


def graph(folder: Path, location: str) -> None:
    """The UNet's graph with one tensor that lies in another place; the manifest vouches for it."""
    path = folder / GRAPHS["unet"]
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    vouch(folder)


@pytest.mark.parametrize(
    "location", ["../text_encoder/model.safetensors", "/etc/passwd", "other.safetensors", "link", "config.json/..", ""]
)
def test_a_graph_that_takes_weights_from_elsewhere(folder: Path, location: str) -> None:
    """Also from files of the folder that nobody vouches for; also when the manifest vouches for the graph."""
    (folder / "unet/link").symlink_to("/etc/passwd")
    (folder / "unet/other.safetensors").write_bytes(b"x")
    graph(folder, location)
    message = refusal(folder)
    assert (
        f"{folder / GRAPHS['unet']} takes weights from {location!r}, which the manifest does not vouch for" in message
    )


def test_weights_inside_of_nodes_are_found(artifact: Artifact) -> None:
    """External data in a constant, in a subgraph, in a sparse tensor, in a function: wherever a runtime reads it."""
    model = onnx.load(artifact.graph("unet"), load_external_data=False)
    assert external_files(model.SerializeToString()) == {"diffusion_pytorch_model.safetensors"}

    def tensor(location: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=location, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        return made

    inner = onnx.helper.make_graph([], "inner", [], [], [tensor("in a branch")])
    deeper = onnx.helper.make_graph([onnx.helper.make_node("If", [], [], then_branch=inner)], "deeper", [], [])
    node = onnx.helper.make_node("Loop", [], [], body=deeper, value=tensor("in a node"))
    node.attribute.append(onnx.helper.make_attribute("list", [tensor("in a list")]))
    sparse = onnx.SparseTensorProto(values=tensor("sparse values"), indices=tensor("sparse indices"))
    node.attribute.append(onnx.helper.make_attribute("sparse", sparse))
    model.graph.node.append(node)
    model.graph.sparse_initializer.append(sparse)
    model.functions.append(onnx.helper.make_function("d", "f", [], [], [node], []))
    model.training_info.add().algorithm.CopyFrom(onnx.helper.make_graph([], "t", [], [], [tensor("training")]))
    assert external_files(model.SerializeToString()) == {
        "diffusion_pytorch_model.safetensors", "in a branch", "in a node", "in a list", "sparse values",
        "sparse indices", "training",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\x3a" + b"\xff" * 12, b"\x0b", b"\x09ab", b"\xff" * 20])
def test_a_graph_that_is_no_graph(folder: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|a field of kind"):
        external_files(data)
    (folder / GRAPHS["unet"]).write_bytes(data)
    vouch(folder)
    assert f"{folder / GRAPHS['unet']} cannot be read as a graph: " in refusal(folder)


def test_a_graph_of_many_layers_of_messages() -> None:
    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    data = b""
    for _ in range(50):  # a node's attribute's graph's node's ...
        for field in (6, 5, 1):
            data = bytes([field << 3 | 2]) + varint(len(data)) + data
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        external_files(b"\x3a" + varint(len(data)) + data)


def test_nothing_is_built_from_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = bytearray((folder / UNET).read_bytes())
    damaged[len(damaged) // 3] ^= 16
    (folder / UNET).write_bytes(damaged)
    assert main(["build", str(folder), "--backend", "tensorrt_rtx", "--arch", "sm_89"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"{folder / UNET} is not the file that the manifest vouches for: restore it, unless the change is meant; "
        f"{MEND}\n"
    )
