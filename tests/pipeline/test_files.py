"""Where a link may lead: within its folder, and into the blobs of a model hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from pipeline.files import check_links

NAME = "unet/config.json"


def linked(folder: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{}")
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).symlink_to(os.path.relpath(target, (folder / NAME).parent))
    return folder


@pytest.mark.parametrize(
    ("folder", "target"),
    [
        ("model", "model/other/config.json"),
        ("models--a--b/snapshots/0123", "models--a--b/blobs/4567"),
        ("cache/snapshots/0123", "cache/blobs/4567"),
        ("model", "hub/models--a--b/blobs/4567"),  # snapshot_download(local_dir=...) of an older client
        ("models--c--d/snapshots/0123", "hub/models--a--b/blobs/4567"),
    ],
)
def test_links_of_hubs(tmp_path: Path, folder: str, target: str) -> None:
    check_links(linked(tmp_path / folder, tmp_path / target), NAME)
    (tmp_path / "alias").symlink_to(tmp_path / folder)
    check_links(tmp_path / "alias", NAME)


@pytest.mark.parametrize(
    "target",
    ["secret.json", "blobs/4567", "models--a--b/4567", "models--a--b/blobs/deeper/4567", "models/blobs/4567"],
)
def test_links_to_anybodys_files(tmp_path: Path, target: str) -> None:
    with pytest.raises(CheckpointError, match="is a link to .*, outside its folder"):
        check_links(linked(tmp_path / "model", tmp_path / target), NAME)


def test_a_link_behind_a_link(tmp_path: Path) -> None:
    folder = linked(tmp_path / "model", tmp_path / "models--a--b/blobs/4567")
    (tmp_path / "models--a--b/blobs/4567").unlink()
    (tmp_path / "models--a--b/blobs/4567").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="secret, outside its folder"):
        check_links(folder, NAME)
