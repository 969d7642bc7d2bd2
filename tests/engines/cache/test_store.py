"""The store: what comes back is what was kept, or it is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.cache import disk, entries, lock, store
from engines.cache.sealed import Damaged, read_sealed, sealed
from engines.errors import BackendError

IDENTITY = {"network": "unet", "backend": "stub", "target": "sm_89", "shapes": {"sample": [2, 4]}}
DATA = bytes(range(256)) + b"end"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    return tmp_path / "engines"


def keep(identity: dict[str, Any] = IDENTITY, data: bytes = DATA) -> Path:
    def write(new: entries.Fresh, out: Path) -> dict[str, Any]:
        disk.write(out, data)
        disk.write(out.with_name(store.INSPECTION), b'{"Layers": []}')
        return {"inputs": ["sample"]}

    store.keep(identity, {"model": "tiny"}, write)
    return store.place(identity)


def refusal() -> str:
    with pytest.raises(Damaged) as caught:
        store.load(IDENTITY)
    with pytest.raises(Damaged) as again:
        store.verify(IDENTITY)
    assert str(again.value) == str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("data", [b"", b"x", DATA, b"engine" * 1_000_000])
def test_what_was_kept_comes_back(data: bytes) -> None:
    place = keep(data=data)
    found = store.load(IDENTITY)
    assert found is not None and found.data == data and found.folder == place
    manifest = found.manifest
    assert manifest == store.verify(IDENTITY)
    assert (
        manifest["identity"] == IDENTITY and manifest["model"] == "tiny" and manifest["facts"] == {"inputs": ["sample"]}
    )
    assert manifest["engine"]["bytes"] == len(data) and manifest["seconds"] >= 0 and manifest["errors"] == {}
    assert store.manifests() == [(place, manifest)]


def test_what_a_builder_does_not_write_beside_is_not_asked_for() -> None:
    def write(_: entries.Fresh, out: Path) -> dict[str, Any]:
        disk.write(out, DATA)
        return {}

    assert "inspection" not in store.keep(IDENTITY, {}, write)
    assert store.load(IDENTITY) is not None


def test_nothing_was_kept() -> None:
    assert store.load(IDENTITY) is store.verify(IDENTITY) is None
    keep()
    assert store.load({**IDENTITY, "target": "sm_86"}) is None


def test_one_flipped_byte_anywhere() -> None:
    place = keep()
    for name in ("engine", "inspection.json", "manifest.json"):
        path = place / name
        whole = path.read_bytes()
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            assert refusal().startswith(f"{path} is damaged")
        path.write_bytes(whole)
    assert store.load(IDENTITY) is not None


@pytest.mark.parametrize("name", ["engine", "inspection.json", "manifest.json"])
def test_truncated_missing_or_longer(name: str) -> None:
    path = keep() / name
    whole = path.read_bytes()
    for other in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        path.write_bytes(other)
        assert refusal().startswith(f"{path} is damaged")
    path.unlink()
    assert refusal() == f"{path} is missing"


@pytest.mark.parametrize("name", ["engine", "inspection.json", "manifest.json"])
def test_what_is_no_file(name: str) -> None:
    """A pipe would be waited for, without end."""
    path = keep() / name
    path.unlink()
    os.mkfifo(path)
    assert refusal() == f"{path} cannot be read: it is a pipe"


def test_an_engine_in_the_place_of_another() -> None:
    other = {**IDENTITY, "target": "sm_86"}
    shutil.copytree(keep(other), store.place(IDENTITY))
    assert "is of another engine than its folder's name says" in refusal()


@pytest.mark.parametrize("values", [{}, {"format": 2}, {"format": 1}, {"format": 1, "identity": IDENTITY}])
def test_a_sealed_manifest_that_says_something_else(values: dict[str, Any]) -> None:
    path = keep() / "manifest.json"
    path.write_bytes(sealed(values))
    assert str(path) in refusal()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"null", b"{}", b'{"seal": 1}', b"1" * 5_000_000]
)
def test_what_is_no_manifest(text: bytes) -> None:
    path = keep() / "manifest.json"
    path.write_bytes(text)
    message = refusal()
    assert message.startswith((f"{path} is damaged", f"{path} has 5000000 bytes")) and len(message) < 400


def test_plans_are_refused_with_the_command_that_builds_them() -> None:
    with pytest.raises(BackendError) as caught:
        store.require(IDENTITY, "make engines MODEL=tiny")
    assert str(caught.value).startswith("there is no engine unet stub sm_89 at ")
    assert str(caught.value).endswith("; run `make engines MODEL=tiny` to build it")
    path = keep() / "engine"
    assert store.require(IDENTITY, "").data == DATA
    path.write_bytes(b"x" * len(DATA))
    with pytest.raises(BackendError, match=f"{path} is damaged .*; run `make engines MODEL=tiny` to build it again"):
        store.require(IDENTITY, "make engines MODEL=tiny")


def test_a_new_one_takes_the_place_of_the_damaged() -> None:
    place = keep()
    (place / "engine").write_bytes(b"damaged")
    (place / "other").write_bytes(b"left behind")
    refusal()
    keep(data=b"new")
    found = store.load(IDENTITY)
    assert found is not None and found.data == b"new"
    assert sorted(path.name for path in place.parent.rglob("*")) == [
        place.name,
        "engine",
        "inspection.json",
        "manifest.json",
    ]


def test_measured_errors_go_into_the_manifest() -> None:
    place = keep()
    store.annotate(IDENTITY, {"unet": 1e-3, "ddim": 2e-3}, "a card")
    store.annotate(IDENTITY, {"unet": 4e-3}, "a card")
    manifest = store.verify(IDENTITY)
    assert manifest is not None and manifest["errors"] == {"unet": 4e-3, "ddim": 2e-3}
    assert manifest["checked"]["device"] == "a card"
    lock.let_go(place)
    shutil.rmtree(place)
    store.annotate(IDENTITY, {"unet": 1.0}, "a card")  # evicted meanwhile
    assert not place.exists()


def test_a_cache_that_cannot_be_written_serves(folder: Path) -> None:
    """As of another user's: to root nothing is read-only, so the disk refuses through the seam."""
    keep()

    def read_only(doing: str, path: Path) -> None:
        raise OSError(30, "Read-only file system")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "before", read_only)
        assert store.load(IDENTITY) is not None
        with pytest.raises(disk.DiskError, match="Read-only file system"):
            keep({**IDENTITY, "target": "sm_86"})
    assert [path.name for path in entries.entries(folder)] == [store.place(IDENTITY).name]


def test_a_seal_is_over_the_very_bytes(tmp_path: Path) -> None:
    """The same values written in another way are not what was sealed."""
    path = tmp_path / "one.json"
    path.write_bytes(sealed({"b": [1, 2.5, None], "a": "é"}))
    assert read_sealed(path) == {"a": "é", "b": [1, 2.5, None]}
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    with pytest.raises(Damaged, match="its seal is not that of its contents"):
        read_sealed(path)
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "none.json")
    with pytest.raises(Damaged, match="cannot be read"):
        read_sealed(tmp_path)
