"""Locks between processes: they wait for the living and never for the dead."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.cache import lock

ROOT = Path(__file__).parents[3]
HOLDS = """
import sys, pathlib
from engines.cache import lock
with lock.alone(pathlib.Path(sys.argv[1]), print) as waited:
    print("has it", waited, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that makes what belongs at `place`."""
    process = _start(tmp_path / "place")
    assert process.stdout and process.stdout.readline() == "has it False\n"
    yield process
    process.kill()
    process.communicate()


def _start(place: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", HOLDS, str(place)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_it_waits_and_says_for_whom(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    third = _start(tmp_path / "place")
    assert third.stdout
    assert third.stdout.readline() == f"waiting for process {other.pid}, which makes {tmp_path / 'place'}\n"
    other.communicate()  # the end of its input
    assert third.stdout.readline() == "has it True\n"
    third.communicate()
    assert not list(tmp_path.iterdir()), "locks are gone with their holders"


def test_a_killed_holders_lock_is_free_at_once(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".lock-place"]
    with lock.alone(tmp_path / "place", lambda line: pytest.fail(line)) as waited:
        assert not waited
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removed it between our opening and our locking it: that lock holds nobody off."""
    flock, calls = fcntl.flock, []

    def late(number: int, how: int) -> None:
        if not calls:
            (tmp_path / ".lock-place").unlink()
        calls.append(number)
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.alone(tmp_path / "place", lambda _: None):
        assert len(calls) == 2 and (tmp_path / ".lock-place").read_text() == str(os.getpid())


def test_what_is_used_cannot_be_taken(tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    assert not lock.use(folder)
    folder.mkdir()
    assert lock.use(folder) and lock.use(folder)
    assert lock.take(folder, fcntl.LOCK_EX) is None
    lock.let_go(folder)
    number = lock.take(folder, fcntl.LOCK_EX)
    assert number is not None and not lock.use(folder), "being removed"
    os.close(number)
    lock.let_go(folder)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(number: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert lock.use(tmp_path)
    lock.let_go(tmp_path)
    with lock.alone(tmp_path / "place", lambda line: pytest.fail(line)):
        pass
    with lock.alone(Path("/proc/nowhere/place"), lambda line: pytest.fail(line)):
        pass
