"""What TensorRT calls back while it builds: its log, its progress, and where its plan goes.

They are subclasses of classes of TensorRT's, which is imported late, so functions make them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from engines.cache import disk


def build_log(trt: Any) -> Any:
    class Log(trt.ILogger):
        """A log that keeps errors and warnings, and nothing else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Log()


def plan_writer(trt: Any, write: Callable[[bytes], None]) -> Any:
    class Writer(trt.IStreamWriter):
        """A writer that hashes what it writes. It keeps exceptions, which must not travel through TensorRT's frames."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.digest = hashlib.sha256()
            self.failed: disk.DiskError | None = None

        def write(self, data: bytes) -> int:
            try:
                write(data)
                self.digest.update(data)
            except disk.DiskError as error:
                self.failed = error
                return 0
            return len(data)

    return Writer()


def progress_monitor(trt: Any, network: str, say: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """A monitor that says each phase that has no parent."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                say(f"{network}: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True  # False would cancel

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
