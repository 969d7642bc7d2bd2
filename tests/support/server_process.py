"""The server as a process: what it says, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent
FREE = ("--http-port", "off", "--grpc-port", "0", "--metrics-port", "0", "--precision", "f32")


class Process:
    """A running server; its lines are read by threads, so that it never waits for us."""

    def __init__(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def says(self, pattern: str) -> re.Match[str]:
        """The first line of either stream that has `pattern`, once there is one."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.out + self.err if (match := re.search(pattern, line))), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() or self.popen.poll() is not None, PATIENCE), self.err
            match = found()
        assert match, (pattern, self.out, self.err)
        return match

    def address(self) -> str:
        return self.says(r"gRPC (\S+:\d+),")[1]

    def end(self) -> int:
        """The exit status."""
        status = self.popen.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status


@contextlib.contextmanager
def process(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[Process]:
    started = Process(*arguments, environment=environment)
    try:
        yield started
    finally:
        started.popen.kill()
        started.end()


SLOW_LOAD = """
import sys, threading
from server import app
from server.__main__ import main

def load_for_ever(settings):
    print("loading", flush=True)
    threading.Event().wait()

app.load_model = load_for_ever
sys.exit(main(sys.argv[1:]))
"""
