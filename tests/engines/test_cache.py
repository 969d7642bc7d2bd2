"""The cache: what comes back is what was stored, or nothing."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from engines import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_was_stored_comes_back(folder: Path) -> None:
    for data in (b"", b"x", b"engine" * 100_000):
        cache.store("one", data)
        assert cache.load("one") == data
    assert entries(folder) == ["one"]


def test_nothing_was_stored() -> None:
    assert cache.load("other") is None


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_a_damaged_entry_is_nothing_and_replaced(folder: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    cache.store("one", b"some engine")
    path = folder / "engines" / "one"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert cache.load("one") is None
    assert caplog.messages == [f"{path} is damaged; building it again"]
    cache.store("one", b"some engine")
    assert cache.load("one") == b"some engine"


@pytest.mark.parametrize("kept", [0, 5, 32, 40])
def test_a_truncated_entry_is_nothing(folder: Path, kept: int) -> None:
    cache.store("one", b"some engine")
    path = folder / "engines" / "one"
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.load("one") is None


def test_a_folder_that_cannot_be_written_only_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_bytes(b"a file in the folder's place")
    with caplog.at_level(logging.WARNING):
        cache.store("one", b"some engine")
    assert len(caplog.messages) == 1 and "the next start compiles it again" in caplog.messages[0]
    assert cache.load("one") is None


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(
    folder: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store("one", b"the old engine")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    if isinstance(failure, OSError):
        cache.store("one", b"the new engine")
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.store("one", b"the new engine")
    assert entries(folder) == ["one"] and cache.load("one") == b"the old engine"


def test_keys() -> None:
    assert cache.key(a=1, b=[2, "x"]) == cache.key(b=[2, "x"], a=1)
    assert len({cache.key(a=1), cache.key(a=2), cache.key(b=1), cache.key(a="1"), cache.key(a=1, b=None)}) == 5
    assert cache.key(a=1).isalnum() and len(cache.key(a=1)) == 32


def test_where_it_lies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_CACHE", "here")  # a child process may run elsewhere
    assert cache.cache_folder() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LATENTD_CACHE", "~/own")
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENTD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "latentd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / ".cache" / "latentd"
