"""The cache's limit: who goes, in which order, and who never does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.cache import devices, eviction, lock
from engines.cache.eviction import LimitError

ROOT = Path(__file__).parents[3]
KB = 1e-6  # of a gigabyte


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    return tmp_path


def entry(folder: Path, name: str, used: float, kilobytes: int = 1) -> Path:
    """`name` is "engines/key" or "artifacts/key"; an artifact's files lie deeper."""
    path = folder / name
    deep = path / "model" / "unet"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(bytes(1000 * kilobytes))
    os.utime(path, (used, used))
    return path


def left(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for kind in ("engines", "artifacts") for path in (folder / kind).glob("*")
    )


def test_the_longest_unused_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, used in (("engines/b", 20), ("artifacts/a", 10), ("engines/c", 30), ("artifacts/d", 40)):
        entry(folder, name, used)
    for most, wanted in (
        (4, ["artifacts/a", "artifacts/d", "engines/b", "engines/c"]),
        (3.5, ["artifacts/d", "engines/b", "engines/c"]),
        (1, ["artifacts/d"]),
        (0, []),
    ):
        monkeypatch.setenv("LATENTD_CACHE_GB", str(most * KB))
        eviction.evict()
        assert left(folder) == wanted


def test_use_makes_it_the_last_to_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = entry(folder, "engines/a", 10), entry(folder, "engines/b", 20)
    eviction.touch(first)
    monkeypatch.setenv("LATENTD_CACHE_GB", str(KB))
    assert [gone.path.name for gone in eviction.evict()] == ["b"]


def test_what_is_in_use_stays(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Here and in another process, until that is dead."""
    mine, theirs, nobodys = (entry(folder, f"engines/{name}", 10) for name in "abc")
    code = "import sys; from engines.cache.lock import Path, use; print(use(Path(sys.argv[1]))); sys.stdin.read()"
    command = [sys.executable, "-u", "-c", code, str(theirs)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "True\n"
        assert lock.use(mine)
        monkeypatch.setenv("LATENTD_CACHE_GB", "0")
        with caplog.at_level(logging.WARNING):
            assert [gone.path for gone in eviction.evict()] == [nobodys]
        assert "in use, more than its limit of 0: raise LATENTD_CACHE_GB" in caplog.messages[-1]
        removed, stayed = eviction.clean()
        assert removed == [] and {each.path for each in stayed} == {mine, theirs}
        other.kill()
    assert [gone.path for gone in eviction.evict()] == [theirs]
    lock.let_go(mine)
    assert [gone.path for gone in eviction.evict()] == [mine]


def test_clean_removes_everything(folder: Path) -> None:
    entry(folder, "engines/a", 10, kilobytes=3)
    entry(folder, "artifacts/b", 10)
    (folder / "engines" / "f00").write_bytes(b"of an earlier version")
    (folder / "engines" / ".new-dead-1").mkdir()
    devices.remember("a device", {"what": "x"}, 1)
    (folder / "mine").write_bytes(b"not of the cache")
    removed, stayed = eviction.clean()
    assert sorted((gone.path.parent.name, gone.bytes >= 21) for gone in removed) == [
        ("artifacts", True),
        ("devices", True),
        ("engines", True),
        ("engines", True),
    ]
    assert not stayed
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "mine"]
    assert eviction.clean() == ([], [])


@pytest.mark.parametrize("told", ["-1", "x", "nan", "inf", "1e9"])
def test_a_limit_that_is_none(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_CACHE_GB", told)
    with pytest.raises(LimitError, match=f"LATENTD_CACHE_GB is '{told}'; it takes a number of gigabytes"):
        eviction.limit()


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert eviction.limit() == 20_000_000_000
    monkeypatch.setenv("LATENTD_CACHE_GB", "0.5")
    assert eviction.limit() == 500_000_000


def test_a_device_remembers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    what = {"what": "rows", "size": [64, 64]}
    assert devices.recall("one", what) is None
    devices.remember("one", what, 2)
    devices.remember("one", {"what": "other"}, [1.5])
    devices.remember("two", what, 4)
    assert (devices.recall("one", what), devices.recall("two", what)) == (2, 4)
    assert devices.recall("one", {"what": "other"}) == [1.5]
    for path in (folder / "devices").glob("*.json"):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert devices.recall("one", what) is None
    assert "is damaged" in caplog.messages[0] and caplog.messages[0].endswith("; measuring again")
    devices.remember("one", what, 3)
    assert devices.recall("one", what) == 3
