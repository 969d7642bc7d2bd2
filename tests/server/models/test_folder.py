"""The names of the models that may be swapped to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.errors import UnknownModel
from server.models.folder import Folder


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    """No message could carry it, and the list would fail for the others' sake."""
    for name in (b"caf\xe9.safetensors", "café.safetensors".encode()):
        (tmp_path / os.fsdecode(name)).touch()
    folder = Folder(tmp_path)
    assert folder.names() == ["café.safetensors"]
    with pytest.raises(UnknownModel, match="it has café"):
        folder.model(os.fsdecode(b"caf\xe9.safetensors"))


def test_a_folder_that_may_not_be_looked_into_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lost+found of a volume, for everybody but root."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model_index.json").touch()
    (tmp_path / "lost+found").mkdir()
    look = os.stat

    def refused(path: str | os.PathLike[str], *args: object, **options: object) -> os.stat_result:
        if "lost+found/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return look(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(PermissionError):
        (tmp_path / "lost+found" / "model_index.json").is_file()
    assert Folder(tmp_path).names() == ["a"]


def test_a_file_s_ending_may_be_left_out(tmp_path: Path) -> None:
    """Clients see its id, which has none."""
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "model_index.json").touch()
    folder = Folder(tmp_path)
    for name, path in (("one", "one.safetensors"), ("one.safetensors", "one.safetensors"), ("two", "two")):
        assert folder.model(name) == tmp_path / path
    for name in ("on", "one.safetensors.safetensors", "", "../one", ".safetensors"):
        with pytest.raises(UnknownModel, match="not in the folder of models; it has one.safetensors, two"):
            folder.model(name)
