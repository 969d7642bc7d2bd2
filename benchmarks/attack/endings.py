"""Ends: calls that nobody reads at SIGTERM, the end of the grace, and a limit that no plain request can keep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.attack.trial import PATIENCE, Figure, request, trial, until
from benchmarks.attack.unread import Unread
from benchmarks.serving import ROOT

GRACE = 8.0  # seconds


def unread(folder: Path) -> list[Figure]:
    """Begin four calls that are never read, one picture of one step each, wait for the pictures, end the server."""
    with trial(folder, "--grace", f"{GRACE:g}") as server, Unread(server.address) as caller:
        made = server.gauge("images_total") or 0.0
        for _ in range(4):
            caller.call(request(steps=1))
        until(lambda: (server.gauge("images_total") or 0.0) >= made + 4)
        return [Figure(f"SIGTERM to exit, 4 calls unread, grace {GRACE:g} s", "s", _ended(server.pid))]


def grace(folder: Path) -> list[Figure]:
    """End a server of a grace of one second while one request sits and others wait; what are they told?"""
    with trial(folder, "--grace", "1", "--queue-seconds", "3600") as server:
        ends: list[tuple[str, str, float]] = []
        callers = [
            threading.Thread(target=lambda: ends.append(server.one(images=8, steps=150)), daemon=True) for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        until(lambda: (server.gauge("queue_depth") or 0) >= 24)
        start = time.monotonic()
        _ended(server.pid)
        for caller in callers:
            caller.join(PATIENCE)
    sentences = sum("grace" in sentence for _, sentence, _ in ends)
    first = min(seconds for _, _, seconds in ends) if ends else 0.0
    return [
        Figure("end of the grace: of 4 calls, those told so by us", "calls", sentences),
        Figure("end of the grace: process ended after", "s", time.monotonic() - start),
        Figure("end of the grace: first call's time", "s", first),
    ]


def limit(folder: Path) -> list[Figure]:
    """Start a server whose limit is below the model's own default; is that said at start, or to every client?"""
    command = [sys.executable, "-m", "server", "--model", str(ROOT / "demo" / "small-things"), "--max-steps", "3"]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        serves = " gRPC " in process.stdout.readline()
        process.terminate()
    return [Figure("--max-steps below the model's default is refused at start", "yes is 1", float(not serves))]


def _ended(pid: int) -> float:
    """End a server with SIGTERM; returns the seconds until it is gone, to within hundredths."""
    start = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    until(lambda: _gone(pid))
    return time.monotonic() - start


def _gone(pid: int) -> bool:
    """Return whether a child of ours has ended; it is reaped by who began it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
