"""Servers as processes, each with an address of its own, that can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Machine:
    """Runs one server. Its ports stay the same from start to start, so it alone listens on `host`: 127.x.y.z."""

    def __init__(self, model: Path, host: str, *flags: str) -> None:
        self._model, self.host, self._flags = model, host, flags
        self._process: subprocess.Popen[str] | None = None
        self.grpc = self.http = 0

    def start(self) -> None:
        """Start the server; it serves on return. Errors: RuntimeError where it does not."""
        command = [sys.executable, "-m", "server", "--model", str(self._model), "--host", self.host]
        command += ["--grpc-port", str(self.grpc), "--http-port", str(self.http), "--metrics-port", "off"]
        process = self._process = subprocess.Popen(
            [*command, *self._flags],
            cwd=ROOT,
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout
        line = process.stdout.readline()  # the only one, once it serves
        if not (found := re.search(r"page http://\S+:(\d+)/, gRPC \S+:(\d+)", line)):
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        self.http, self.grpc = int(found[1]), int(found[2])

    def kill(self) -> None:
        """End it with SIGKILL, as the kernel does when memory is short; it is gone on return."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it with SIGTERM: it drains first. Returns its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if (process := self._process) is None:
            return 0
        process.send_signal(number)
        status = process.wait()  # who is interrupted here still has it, and may kill it
        self._process = None
        if process.stdout:
            process.stdout.close()
        return status


@contextlib.contextmanager
def fleet(model: Path, count: int, *flags: str) -> Iterator[list[Machine]]:
    """Start `count` servers of a model; what is left of them is killed at the end of the block."""
    second, third = divmod(os.getpid() % 62500, 250)
    # No other process of this machine listens on, or connects from, an address that has our number in it.
    machines = [Machine(model, f"127.{second + 1}.{third + 1}.{n + 1}", *flags) for n in range(count)]
    try:
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(machine.start) for machine in machines]
            try:
                for start in starts:
                    start.result()
            except BaseException:
                _kill(machines)  # else the end of the pool waits until the others serve
                raise
        yield machines
    finally:
        _kill(machines)


def _kill(machines: list[Machine]) -> None:
    for machine in machines:
        machine.kill()
