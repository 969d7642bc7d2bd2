"""The cache folder: where it lies, how entries come into it, and what the dead leave."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from engines.cache import devices, disk, entries, lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_kept_folder_is_the_entry(folder: Path) -> None:
    place = folder / "engines" / "one"
    with entries.fresh(place) as new:
        assert new.folder.parent == place.parent and not place.exists()
        disk.write(new.folder / "engine", b"one")
        new.keep()
    assert names(folder / "engines") == ["one"] and (place / "engine").read_bytes() == b"one"
    assert entries.entries(folder / "engines") == [place]
    lock.let_go(place)


def test_a_folder_that_is_not_kept_goes(folder: Path) -> None:
    place = folder / "engines" / "one"
    with pytest.raises(KeyboardInterrupt), entries.fresh(place) as new:
        disk.write(new.folder / "engine", b"one")
        raise KeyboardInterrupt
    assert names(folder / "engines") == [] == entries.entries(folder / "engines")


def test_what_the_dead_left_is_swept(folder: Path) -> None:
    """By the next that comes; what a live process fills, or a file that may be one's, stays."""
    engines = folder / "engines"
    for dead in (".new-one-1", ".old-one-1", "two"):
        (engines / dead).mkdir(parents=True)
        (engines / dead / "engine").write_bytes(b"half")
    (engines / ".lock-one").write_text("123")
    (engines / ".new-file-1").write_bytes(b"young")
    (engines / ".new-file-2").write_bytes(b"old")
    yesterday = time.time() - 86400
    os.utime(engines / ".new-file-2", (yesterday, yesterday))
    with entries.fresh(engines / "three") as alive:
        entries.sweep(engines)
        assert names(engines) == sorted([".new-file-1", alive.folder.name, "two"])
    assert entries.entries(folder / "nowhere") == []


def test_keys() -> None:
    assert entries.key(a=1, b=[2, "x"]) == entries.key(b=[2, "x"], a=1)
    assert (
        len({entries.key(a=1), entries.key(a=2), entries.key(b=1), entries.key(a="1"), entries.key(a=1, b=None)}) == 5
    )
    assert entries.key(a=1).isalnum() and len(entries.key(a=1)) == 32


def test_where_it_lies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert entries.cache_folder() == folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_CACHE", "here")  # a child process may run elsewhere
    assert entries.cache_folder() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LATENTD_CACHE", "~/own")
    assert entries.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENTD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert entries.cache_folder() == tmp_path / "xdg" / "latentd"
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")  # relative: to be ignored, says its specification
    assert entries.cache_folder() == tmp_path / ".cache" / "latentd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert entries.cache_folder() == tmp_path / ".cache" / "latentd"


def test_without_home_it_is_what_passwd_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTD_CACHE")
    for home in (None, ""):
        monkeypatch.delenv("HOME", raising=False) if home is None else monkeypatch.setenv("HOME", home)
        assert entries.cache_folder() == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "latentd"


@pytest.mark.parametrize("chosen", ["", "~nobody-here/cache"])
def test_without_any_home_nothing_can_be_made_and_the_path_says_why(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("LATENTD_CACHE", chosen)
    monkeypatch.delenv("HOME")
    reason = (
        "(LATENTD_CACHE is ~nobody-here|cache, whose home folder is not known)"
        if chosen
        else ("(no home folder is known: set LATENTD_CACHE)")
    )
    assert entries.cache_folder() == Path("/dev/null") / reason
    with pytest.raises(disk.DiskError) as refused, entries.fresh(entries.cache_folder() / "engines" / "x"):
        pass
    assert str(refused.value) == f"cannot make /dev/null/{reason}/engines: Not a directory"
    devices.remember("a card", {"what": 1}, 2)
    assert devices.recall("a card", {"what": 1}) is None
