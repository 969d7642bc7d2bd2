"""Stalls: a server that was stopped (SIGSTOP: a paused container, a frozen machine), idle or at work, and what it then
says to requests with a deadline that it could meet a moment before."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from benchmarks.attack.trial import Figure, Trial, trial

DEADLINE = 3.0  # seconds
STEPS = 12


def refused(server: Trial, requests: int) -> int:
    """Count those of so many requests, one after the other, that are refused or late."""
    return sum(server.one(DEADLINE, steps=STEPS)[0] != "OK" for _ in range(requests))


def stop(server: Trial, seconds: float) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def stall(folder: Path, seconds: tuple[float, ...] = (3.0,), requests: int = 10) -> list[Figure]:
    """Stop a fresh server for each of `seconds`, once idle, once within a request whose deadline passes."""
    figures = []
    for each in seconds:
        with trial(folder) as server:
            fresh = refused(server, requests)
            stop(server, each)
            idle = refused(server, requests)
            sits = threading.Thread(target=server.one, args=(each,), kwargs={"steps": 150})
            sits.start()
            time.sleep(0.1)  # it sits
            stop(server, each)
            sits.join()
            used = refused(server, requests)
        for when, count in (("before a stop", fresh), ("after it, idle", idle), ("after it, in use", used)):
            what = f"refused or late of {requests}, {DEADLINE:g} s: stop of {each:g} s, {when}"
            figures.append(Figure(what, "requests", count))
    return figures
