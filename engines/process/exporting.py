"""The export stage as a child process: whatever needs torch and onnx, for a process that has neither imported.

It ends with its parent, however that ends: an orphan would work on for minutes, for nobody.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from engines.errors import BackendError
from engines.process.tether import tether
from pipeline.errors import CheckpointError
from pipeline.extras import install

_ROOT = Path(__file__).parents[2]
_running: dict[subprocess.Popen[bytes], object] = {}  # and what each is run for

purpose: ContextVar[object] = ContextVar("purpose", default=None)  # what this thread has exports run for


def check_extra(why: str) -> None:
    """Check that the export stage is installed. Errors: BackendError that begins with `why` and names the extra."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        raise BackendError(f"{why} needs the extra `export`: {install('export')}")


def run_export(arguments: Sequence[str], held: Sequence[int] = ()) -> None:
    """Run `python -m export` with `arguments`; the child inherits the descriptors `held`, locks on what it writes.

    Its output goes to ours. Errors: CheckpointError with its last line when it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", "export", *arguments]
    with (
        tether() as (end, environment),
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            pass_fds=[*held, end],
        ) as process,
    ):
        _running[process] = purpose.get()
        try:
            assert process.stderr
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
        finally:
            del _running[process]
    if process.returncode:
        # 1 is an error in words; anything else (a signal) left none.
        ended = f"the export ended with status {process.returncode}"
        raise CheckpointError(lines[-1] if lines and process.returncode == 1 else ended)


def stop_exports(of: object = None) -> None:
    """End exports that are under way: those of a purpose, or all, for a server that has to stop while it loads."""
    for process, what in list(_running.items()):
        if of in (None, what):
            process.terminate()
