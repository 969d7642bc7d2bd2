"""Jobs in processes of their own: what they say, return and raise, and how they may end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from engines.process import apart
from engines.process.apart import ApartError

ROOT = Path(__file__).parents[3]


def run(how: str, number: int = 0) -> tuple[Any, list[str]]:
    said: list[str] = []
    return apart.run("tests.support.child_job:job", {"how": how, "number": number}, said.append), said


def test_a_result_and_what_was_said() -> None:
    assert run("well", 21) == ({"twice": 42}, ["begun"])


@pytest.mark.parametrize(
    ("how", "number", "sentence"),
    [
        ("refused", 0, "^no such kernel$"),
        ("status", 0, "^its process ended with status 3$"),
        ("wrong", 0, "^its process ended with status 1; its last words: ValueError: our own mistake$"),
        ("signal", signal.SIGABRT, "^its process was ended by SIGABRT; its last words: .E. internal error 7$"),
        ("signal", signal.SIGKILL, "^its process was ended by SIGKILL, as Linux does when memory runs out; its last"),
    ],
)
def test_an_end_in_a_sentence(how: str, number: int, sentence: str) -> None:
    with pytest.raises(ApartError, match=sentence) as caught:
        run(how, number)
    assert not caught.value.final and "\n" not in str(caught.value)


def test_a_full_disk_ends_all_work() -> None:
    with pytest.raises(ApartError, match="cannot write /cache/engine .12 bytes.*No space left") as caught:
        run("full")
    assert caught.value.final


@pytest.mark.parametrize("where", [(subprocess, "Popen"), (tempfile, "TemporaryFile")], ids=lambda where: where[1])
def test_a_machine_that_has_no_room_for_one(where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    monkeypatch.setattr(*where, fail)
    with pytest.raises(ApartError, match=r"^no process .* begun for it \(Resource temporarily unavailable\)$"):
        run("well")
    assert sys.platform != "linux" or len(os.listdir("/proc/self/fd")) == before


def test_who_asks_the_parent_to_end_does_not_end_the_child_and_memory_does_first() -> None:
    assert run("asked") == ("1000\n", ["begun"])


PARENT = """
import os, sys, threading
from engines.process import apart

def work():
    apart.run("tests.support.child_job:job", {"how": "forever"}, lambda line: print(line, flush=True))

threading.Thread(target=work, daemon=True).start()  # as a server makes a lane
sys.stdin.readline()
os._exit(0)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_child_dies_with_its_parent(killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin and parent.stdout and parent.stdout.readline() == "begun\n"
        child = int(parent.stdout.readline())
        assert _runs(child)
        if killed:
            parent.kill()
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        parent.wait(30)
    deadline = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < deadline


def _runs(process: int) -> bool:
    """Not one that is dead and waits for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
