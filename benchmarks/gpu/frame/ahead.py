"""Compiles what a section launches before it measures: its first case, in several processes at once.

One after the other, some fifty compilations would take the minutes that are meant for measuring. The processes run
benchmarks/gpu/warm.py, which knows the sections; this file knows none.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.frame.report import AbsentError, Case, Report
from engines.machine import toolchain

_ROOT = Path(__file__).parents[3]
_SECONDS = 60.0  # then whoever is left is ended: the measuring process compiles what is missing
_BYTES = 4 << 30  # of a process on the card: SD 1.5's weights, and a pass


def case(report: Report, walk: str, share: float = 0.5) -> Case:
    """Return a section's first case: it compiles what the others launch, unless the cache says that this was done.

    It may take `share` of the time that the section has left.
    """
    return Case("compile ahead", partial(_compile_ahead, report, walk, share), seconds=_SECONDS + 20)


def _compile_ahead(report: Report, walk: str, share: float) -> None:
    if report.dry:
        raise AbsentError("the interpreter compiles nothing")
    done = toolchain.cache_folder() / f"walked-{walk}-{_sources()}"
    if done.exists():
        report.row("compile ahead", walk, "triton", "s", [0.0], note="done before")
        return
    start, free = time.monotonic(), torch.cuda.mem_get_info()[0]
    until = start + min(_SECONDS, share * report.seconds_left)
    count = max(1, min(12, len(os.sched_getaffinity(0)) - 1, free // _BYTES))
    command = [sys.executable, "-m", "benchmarks.gpu.warm", walk]
    processes = [subprocess.Popen([*command, str(i), str(count)], cwd=_ROOT) for i in range(count)]
    late = 0
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            late += 1
    if not any(process.returncode for process in processes) and not late:
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    note = f"{count} processes, {late} of them ended before they were done"
    report.row("compile ahead", walk, "triton", "s", [time.monotonic() - start], note=note)


def _sources() -> str:
    """Hash what a walk's variants depend on: 16 hex digits."""
    patterns = ("kernels/*.py", "model/*.py", "engines/cuda/*.py", "benchmarks/gpu/warm.py")
    files = sorted(path for pattern in patterns for path in _ROOT.glob(pattern))
    versions = f"{importlib.metadata.version('triton')} {torch.cuda.get_device_capability()}"
    return hashlib.sha256(b"".join(path.read_bytes() for path in files) + versions.encode()).hexdigest()[:16]
