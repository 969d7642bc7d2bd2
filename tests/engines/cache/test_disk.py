"""The disk: what is written whole is, and a disk that does not do it says so in a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engines.cache import disk
from engines.cache.disk import DiskError


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Operations and the names that they were done to."""
    operations: list[tuple[str, str]] = []
    monkeypatch.setattr(disk, "before", lambda doing, path: operations.append((doing, path.name.split("-")[0])))
    return operations


def full_at(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    def before(doing: str, path: Path) -> None:
        if doing == wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "before", before)


def test_whole_in_this_order(tmp_path: Path, done: list[tuple[str, str]]) -> None:
    """Bytes reach the disk before the name does, or a power cut leaves the name without them."""
    disk.write_whole(tmp_path / "one", b"some bytes")
    assert [doing for doing, _ in done] == ["write", "half", "sync", "replace", "sync"]
    assert done[3] == ("replace", "one") and done[4][1] == tmp_path.name.split("-")[0]
    assert (tmp_path / "one").read_bytes() == b"some bytes" and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("length", [0, 1, 2, 5, (1 << 23) + 3])
def test_bytes_come_through(tmp_path: Path, length: int, done: list[tuple[str, str]]) -> None:
    data = os.urandom(length)
    disk.write(tmp_path / "one", data)
    with disk.written(tmp_path / "two") as write:
        for piece in (data[: length // 2], data[length // 2 :]):
            write(piece)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == data
    assert done[-1] == ("sync", "two") and (length < 2 or ("half", "two") in done)


@pytest.mark.parametrize("doing", ["write", "half", "sync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    disk.write_whole(path, b"old")
    full_at(monkeypatch, doing)
    with pytest.raises(DiskError) as caught:
        disk.write_whole(path, b"x" * 1234)
    message = str(caught.value)
    assert message.startswith(f"cannot write {path} (1,234 bytes, of which ") and "\n" not in message
    assert message.endswith("are free): No space left on device") and caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["one"]


def test_every_operation_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    below = tmp_path / "file" / "below"
    for call in (
        lambda: disk.make(below),
        lambda: disk.write(below, b""),
        lambda: disk.written(below).__enter__(),
        lambda: disk.sync(below),
        lambda: disk.replace(tmp_path / "file", below),
    ):
        with pytest.raises(DiskError, match=f"{below}.*: (Not a directory|No such file or directory)"):
            call()


def test_removed_folders_are_out_of_the_way_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit in the middle of removing leaves no half of a folder under its name."""
    (tmp_path / "own" / "deep").mkdir(parents=True)
    monkeypatch.setattr(disk.shutil, "rmtree", lambda _: None)
    disk.remove(tmp_path / "own")
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".old-own-")
    disk.remove(tmp_path / "nothing")


def test_piece_by_piece(tmp_path: Path, done: list[tuple[str, str]]) -> None:
    """As a compiler hands out its engine."""
    with disk.written(tmp_path / "one") as more:
        for piece in (b"some", b"", b" bytes"):
            more(piece)
    assert [doing for doing, _ in done] == ["write", "half", "half", "sync"]
    assert (tmp_path / "one").read_bytes() == b"some bytes"


@pytest.mark.parametrize(("at", "bytes"), [("write", 4), ("half", 10), ("sync", 10)])
def test_a_disk_that_is_full_at_a_piece(tmp_path: Path, at: str, bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    full_at(monkeypatch, at)
    told = f"cannot write {tmp_path}/one .{bytes} bytes, of which .* No space left"
    with pytest.raises(DiskError, match=told), disk.written(tmp_path / "one") as more:
        more(b"some")
        more(b" bytes")


@pytest.mark.parametrize("at_once", [True, False])
def test_two_folders_swap_their_names(tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = folders(tmp_path, monkeypatch, at_once)
    disk.exchange(one, two)
    assert os.listdir(one) == ["2"] and os.listdir(two) == ["1"] and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_name_that_cannot_be_had(tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = folders(tmp_path, monkeypatch, at_once)
    os.rename(one, tmp_path / "gone")
    with pytest.raises(DiskError, match=f"cannot rename to {two}: No such file or directory"):
        disk.exchange(one, two)
    assert os.listdir(two) == ["2"] and len(os.listdir(tmp_path)) == 2, "as it was"


def folders(place: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> list[Path]:
    if not at_once:  # as on a file system that cannot
        monkeypatch.setattr(disk, "_swapped", lambda *_: False)
    for name in "12":
        (place / name / name).mkdir(parents=True)
    return [place / "1", place / "2"]
