"""Opening an artifact: every file is the one that the manifest vouches for, or it is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.artifact import opened as artifacts
from engines.artifact.opened import FORMAT, GRAPHS, MANIFEST, Artifact, digests, is_artifact, open_artifact
from engines.cache.sealed import read_sealed, sealed
from pipeline.checkpoint.opened import SMALL_FILES
from pipeline.errors import CheckpointError

Manifest = dict[str, Any]


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.folder, tmp_path / "own"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_artifact(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert message.endswith("export it again with `make onnx MODEL=checkpoint OUT=dir`"), "say how to mend it"
    return message


def change(folder: Path, do: Callable[[Manifest], object]) -> None:
    """Rewrite the manifest, sealed again: what is found then is not found by its seal."""
    manifest = read_sealed(folder / MANIFEST)
    do(manifest)
    (folder / MANIFEST).write_bytes(sealed(manifest))


def files(folder: Path) -> list[str]:
    return list(json.loads((folder / MANIFEST).read_text())["files"])


def test_it_opens(artifact: Artifact, folder: Path) -> None:
    opened = open_artifact(folder)
    assert opened.digest == artifact.digest and opened.spec == artifact.spec and opened.id == "own"
    assert all(opened.graph(name) == folder / path for name, path in GRAPHS.items())


def test_a_relative_or_linked_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    assert open_artifact(Path("own")).folder == open_artifact(tmp_path / "link").folder == folder


def test_one_flipped_bit_in_any_file(folder: Path) -> None:
    named = files(folder)
    assert {*GRAPHS.values(), "unet/diffusion_pytorch_model.safetensors", "latentd.json"} <= {*named}
    assert {name for name in SMALL_FILES if (folder / name).exists()} <= {*named}
    for name in named:
        path = folder / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            assert f"{path} is not the file that the manifest vouches for" in refusal(folder)
        path.write_bytes(whole)
    open_artifact(folder)


def test_a_missing_file(folder: Path) -> None:
    for name in files(folder):
        (folder / name).rename(folder / "away")
        assert refusal(folder).startswith(f"{folder / name} is missing")
        (folder / "away").rename(folder / name)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        digests([tmp_path])


def test_a_file_that_is_read_but_not_named(folder: Path) -> None:
    whole = (folder / MANIFEST).read_bytes()
    for name in (*GRAPHS.values(), *(name for name in SMALL_FILES if (folder / name).exists())):
        change(folder, lambda manifest, name=name: manifest["files"].pop(name))
        assert f"{MANIFEST} does not name {name}" in refusal(folder)
        (folder / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("name", ["../other/model.onnx", "unet/../../other", "/etc/passwd"])
def test_a_name_outside_the_folder(folder: Path, name: str) -> None:
    change(folder, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64}}))
    assert f"names {name!r}, which lies outside its folder" in refusal(folder)


@pytest.mark.parametrize("number", [0, FORMAT - 1, FORMAT + 1, str(FORMAT), None])
def test_another_format(folder: Path, number: object) -> None:
    change(folder, lambda manifest: manifest.update(format=number))
    assert f"has format {number!r}, not {FORMAT}" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "key", "value"), [("unet", "heads", [8, 8]), ("defaults", "steps", 5), ("schedule", "beta_end", 0.0131)]
)
def test_another_spec(folder: Path, part: str, key: str, value: object) -> None:
    change(folder, lambda manifest: manifest["spec"][part].update({key: value}))
    assert "was made for another spec than its configs give" in refusal(folder)


def test_a_field_that_came_later(folder: Path) -> None:
    """A manifest that lacks it was made when there was only what is now its default; the model then has no other."""
    change(folder, lambda manifest: manifest["spec"]["unet"].pop("guidance_width"))
    open_artifact(folder)
    change(folder, lambda manifest: manifest["spec"]["unet"].pop("groups"))  # has no default
    assert "was made for another spec than its configs give" in refusal(folder)


def test_a_field_that_came_later_and_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = open_artifact(folder).spec
    guided = dataclasses.replace(spec, unet=dataclasses.replace(spec.unet, guidance_width=8))
    monkeypatch.setattr(artifacts, "read_spec", lambda _: guided)
    change(folder, lambda manifest: manifest["spec"]["unet"].pop("guidance_width"))
    assert "was made for another spec than its configs give" in refusal(folder)


def test_a_field_that_went(folder: Path) -> None:
    change(folder, lambda manifest: manifest["spec"]["unet"].update(gone=1))
    assert "was made for another spec than its configs give" in refusal(folder)


def test_one_flipped_byte_anywhere_in_the_manifest(folder: Path) -> None:
    """Also where nobody reads it, such as a tool's version: the whole file is sealed."""
    whole = (folder / MANIFEST).read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(damaged)
        message = refusal(folder)
        assert f"{folder / MANIFEST} is damaged" in message or f"{folder / MANIFEST} has format" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"format": 3}',
        b'{"format": 3, "files": []}',
        b'{"format": 3, "files": {"a": 1}, "spec": {}}',
        b'{"format": 3, "files": {"a": {}}, "spec": {}}',
        b'{"format": 3, "files": {}}',
    ],
)
def test_a_damaged_manifest(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert f"{folder / MANIFEST} is damaged" in refusal(folder)


def test_no_manifest(folder: Path) -> None:
    assert is_artifact(folder)
    (folder / MANIFEST).unlink()
    assert not is_artifact(folder)
    assert f"{folder / MANIFEST} cannot be read" in refusal(folder)


def test_digests_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (1 if number % 2 else 100_000))
    assert digests(paths[::-1]) == digests(paths)[::-1]
    assert len({*digests(paths)}) == 20
